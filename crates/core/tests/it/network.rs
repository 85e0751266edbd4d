//! IP allowlists, compared with arithmetic on addresses.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use proptest::prelude::*;
use tollkey_core::IpList;

/// The CIDR with this prefix length that contains the address.
fn v4(address: u32, length: u32) -> String {
    format!(
        "{}/{length}",
        Ipv4Addr::from(first_bits(u128::from(address), length, 32) as u32)
    )
}

fn v6(address: u128, length: u32) -> String {
    format!(
        "{}/{length}",
        Ipv6Addr::from(first_bits(address, length, 128))
    )
}

fn first_bits(address: u128, length: u32, width: u32) -> u128 {
    let host_bits = width - length;
    address
        .checked_shr(host_bits)
        .unwrap_or(0)
        .checked_shl(host_bits)
        .unwrap_or(0)
}

fn any_cidr() -> impl Strategy<Value = String> {
    prop_oneof![
        // So few that they are often nested.
        2 => (0..4_u32, 0..4_u32).prop_map(|(a, l)| v4(a << 30, l)),
        1 => (0..4_u128, 0..4_u32).prop_map(|(a, l)| v6(a << 126, l)),
        1 => (any::<u32>(), 0..=32_u32).prop_map(|(a, l)| v4(a, l)),
        1 => (any::<u128>(), 0..=128_u32).prop_map(|(a, l)| v6(a, l)),
        1 => (any::<u32>(), 96..=128_u32).prop_map(|(a, l)| v6(0xffff_0000_0000 | u128::from(a), l)),
    ]
}

fn any_list() -> impl Strategy<Value = IpList> {
    prop::collection::vec(any_cidr(), 1..4)
        .prop_map(|cidrs| IpList::parse(cidrs.iter().map(String::as_str)).unwrap())
}

proptest! {
    #[test]
    fn ipv4_range_contains_addresses_with_its_first_bits(base: u32, length in 0..=32_u32, flip in 0..32_u32, other: u32) {
        let list = IpList::parse([v4(base, length).as_str()]).unwrap();
        for address in [base, base ^ (1 << flip), other] {
            let expected = first_bits(address.into(), length, 32) == first_bits(base.into(), length, 32);
            let address = Ipv4Addr::from(address);
            prop_assert_eq!(list.contains(address.into()), expected, "{:?} {}", &list, address);
            prop_assert_eq!(list.contains(address.to_ipv6_mapped().into()), expected, "{:?} {} mapped", &list, address);
        }
    }

    #[test]
    fn ipv6_range_contains_addresses_with_its_first_bits(base: u128, length in 0..=128_u32, flip in 0..128_u32) {
        let list = IpList::parse([v6(base, length).as_str()]).unwrap();
        for address in [base, base ^ (1 << flip)] {
            prop_assume!(Ipv6Addr::from(address).to_ipv4_mapped().is_none());
            let expected = first_bits(address, length, 128) == first_bits(base, length, 128);
            prop_assert_eq!(list.contains(Ipv6Addr::from(address).into()), expected);
        }
    }

    #[test]
    fn host_bits_are_rejected(base: u32, length in 0..32_u32, host: prop::sample::Index) {
        let host = host.index((32 - length) as usize);
        let network = first_bits(base.into(), length, 32) as u32;
        let cidr = format!("{}/{length}", Ipv4Addr::from(network | 1 << host));
        prop_assert!(IpList::parse([cidr.as_str()]).is_err(), "{cidr}");
    }

    #[test]
    fn printed_list_is_parsed_again(list in any_list()) {
        let printed: Vec<String> = list.networks().iter().map(ToString::to_string).collect();
        prop_assert_eq!(IpList::parse(printed.iter().map(String::as_str)).unwrap(), list);
    }

    #[test]
    fn list_contains_an_address_if_one_of_its_ranges_does(list in any_list(), address: IpAddr) {
        let each = |cidr: &ipnet::IpNet| IpList::parse([cidr.to_string().as_str()]).unwrap().contains(address);
        prop_assert_eq!(list.contains(address), list.networks().iter().any(each));
    }

    #[test]
    fn covered_list_contains_no_address_outside_of_the_outer_list(outer in any_list(), inner in any_list(), at: prop::sample::Index) {
        prop_assert!(outer.covers(&outer));
        let network = at.get(inner.networks());
        let both_ends = [network.network(), network.broadcast()];
        if outer.covers(&inner) {
            prop_assert!(both_ends.into_iter().all(|address| outer.contains(address) || !inner.contains(address)));
        }
    }

    #[test]
    fn arbitrary_text_never_panics(text in prop_oneof![
        any::<String>(), "0{0,2}10\\.0{1,3}\\.0\\.0/0?8", "[0-9]{1,3}(\\.[0-9]{1,3}){3}/[0-9+]{1,3}", "[0-9a-f:]{0,12}(\\.[0-9]{1,3}){0,4}/[0-9]{1,3}",
    ]) {
        if let Ok(list) = IpList::parse([text.as_str()]) {
            let (address, length) = text.split_once('/').unwrap();
            prop_assert!(address.parse::<IpAddr>().is_ok(), "{text:?} has no valid address");
            prop_assert!(length.bytes().all(|b| b.is_ascii_digit()));
            prop_assert!(list.contains(address.parse().unwrap()));
        }
    }
}
