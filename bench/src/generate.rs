//! `cargo xtask generate`: fills a migrated, empty database with many keys, to measure how Tollkey behaves with them.
//!
//! All values of a key are derived from its number, so that a benchmark can generate its keys again and need not store
//! them. Anyone can do the same, so never use a generated database in production.

use std::{
    io::{IsTerminal as _, Write as _},
    sync::Arc,
    time::Instant,
};

use anyhow::{Context as _, bail, ensure};
use tollkey_core::{
    AccountId, ApiKey, Application, Digest, Family, Id, IpList, Mode, PlainKey, RateLimit,
    Restrictions, Scope, Timestamp, metadata::Metadata,
};
use tollkey_store::{OpenOptions, Store};
use tollkey_verifier::SystemClock;

/// The creation time of the first key in seconds, and the time span of all keys in microseconds.
const BEGIN: i64 = 1_704_067_200;
const SPAN_MICROS: u128 = 2 * 365 * 86_400 * 1_000_000;
/// The number of keys of an application.
const OF_AN_APPLICATION: u64 = 20;

/// The keys of many accounts. Key `i` belongs to account `i % accounts`. Every fourth key of an account belongs to an
/// application.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Population {
    pub(crate) keys: u64,
    pub(crate) accounts: u64,
}

impl Population {
    /// Returns the full key.
    pub(crate) fn text(self, number: u64) -> String {
        let family = if self.is_of_application(number) {
            Family::Application
        } else {
            Family::Commerce
        };
        let mut text = format!("{}_live_", family.prefix());
        text.extend(bytes("text", number).map(|byte| {
            let digits = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
            char::from(digits[usize::from(byte) % digits.len()])
        }));
        text
    }

    pub(crate) fn account(self, number: u64) -> anyhow::Result<AccountId> {
        Ok(format!("account-{:07}", number % self.accounts).parse()?)
    }

    /// One in fifty keys of an account is revoked.
    pub(crate) fn is_usable(self, number: u64) -> bool {
        number / self.accounts % 50 != 49
    }

    fn is_of_application(self, number: u64) -> bool {
        number / self.accounts % 4 == 3
    }

    fn application_id(
        self,
        account: u64,
        number: u64,
    ) -> Id<tollkey_core::application::Application> {
        id("application", account + number * self.accounts, time(0))
    }

    pub(crate) fn key(self, number: u64) -> anyhow::Result<(ApiKey, Digest)> {
        let text = self.text(number);
        let (account, nth) = (number % self.accounts, number / self.accounts);
        let offset = u128::from(number) * SPAN_MICROS / u128::from(self.keys.max(1));
        let created_at = time(i64::try_from(offset)?);
        let is_of_application = self.is_of_application(number);
        let one_in = |count: u64, rest: u64| number.wrapping_mul(2_654_435_761) / 7 % count == rest;
        let scopes = match number % 5 {
            0 => vec![Scope::LINKS_READ, Scope::LINKS_WRITE],
            1 => vec![Scope::CUSTOMERS_READ],
            _ => vec![Scope::COMMERCE],
        };
        let restrictions = Restrictions {
            scopes,
            allowed_ips: one_in(10, 1)
                .then(|| IpList::parse(["198.51.100.0/24", "2001:db8::/32"]))
                .transpose()?,
            rate_limit: one_in(5, 2)
                .then(|| RateLimit::new(1_000_000, 60))
                .transpose()?,
            expires_at: one_in(5, 3)
                .then(|| time(10 * i64::try_from(SPAN_MICROS).unwrap_or(i64::MAX / 10))),
            ..Restrictions::default()
        };
        let metadata = one_in(5, 4).then(|| {
            let object =
                serde_json::json!({ "order": format!("order-{number}"), "team": "checkout" });
            Metadata::new(object.as_object().cloned().unwrap_or_default())
        });
        let revoked_at = (!self.is_usable(number)).then_some(created_at);
        let text = PlainKey::parse(&text).context("a well-formed key")?;
        let family = if is_of_application {
            Family::Application
        } else {
            Family::Commerce
        };
        let key = ApiKey {
            application_id: is_of_application
                .then(|| self.application_id(account, nth / 4 / OF_AN_APPLICATION)),
            name: format!("key {nth}"),
            restrictions,
            metadata: metadata.transpose()?,
            revoked_at,
            revoked_reason: revoked_at.map(|_| "generated as revoked".to_owned()),
            ..ApiKey::new(
                id("key", number, created_at),
                self.account(number)?,
                &text,
                (family, Mode::Live),
                created_at,
            )
        };
        Ok((key, text.digest()))
    }

    /// An account can have one application more than its keys use.
    fn applications(self) -> impl Iterator<Item = anyhow::Result<Application>> {
        let of_an_account = self
            .keys
            .div_ceil(self.accounts)
            .div_ceil(4)
            .div_ceil(OF_AN_APPLICATION);
        (0..self.accounts)
            .flat_map(move |account| (0..of_an_account).map(move |number| (account, number)))
            .map(move |(account, number)| {
                Ok(Application {
                    id: self.application_id(account, number),
                    account_id: self.account(account)?,
                    name: format!("application {number}"),
                    description: None,
                    is_enabled: true,
                    created_at: time(0),
                })
            })
    }
}

/// Returns 32 reproducible pseudorandom bytes.
fn bytes(what: &str, number: u64) -> [u8; 32] {
    *Digest::of_key(&format!("tollkey xtask generate: {what} {number}")).as_bytes()
}

fn time(micros: i64) -> Timestamp {
    Timestamp::from_microsecond(BEGIN * 1_000_000 + micros).unwrap_or(Timestamp::MAX)
}

/// Returns a reproducible UUIDv7 with this time.
fn id<Of>(what: &str, number: u64, at: Timestamp) -> Id<Of> {
    let mut id = [0; 16];
    id.copy_from_slice(&bytes(what, number)[..16]);
    let millis = u64::try_from(at.as_millisecond())
        .unwrap_or(0)
        .to_be_bytes();
    id[..6].copy_from_slice(&millis[2..]);
    id[6] = 0x70 | (id[6] & 0x0f);
    id[8] = 0x80 | (id[8] & 0x3f);
    Id::from_bytes(id)
}

/// Runs the command with the arguments `--keys N [--accounts M] URL`.
pub(crate) fn run(arguments: &[&str]) -> anyhow::Result<()> {
    let (mut keys, mut accounts, mut url) = (None, 10_000, None);
    let mut arguments = arguments.iter().copied();
    while let Some(argument) = arguments.next() {
        let mut number = || -> anyhow::Result<u64> {
            let text = arguments
                .next()
                .with_context(|| format!("{argument} needs a number"))?;
            text.replace('_', "")
                .parse()
                .ok()
                .filter(|&number| number > 0)
                .with_context(|| format!("{argument} needs a number above 0"))
        };
        match argument {
            "--keys" => keys = Some(number()?),
            "--accounts" => accounts = number()?,
            other if url.is_none() && !other.starts_with('-') => url = Some(other),
            other => bail!("unknown argument {other}"),
        }
    }
    let keys = keys.context("--keys is required")?;
    fill(
        url.context("the database URL is required")?,
        Population {
            keys,
            accounts: accounts.min(keys),
        },
    )
}

pub(crate) fn fill(url: &str, population: Population) -> anyhow::Result<()> {
    let store = Store::open(OpenOptions::new(url), Arc::new(SystemClock))?;
    ensure!(
        !store.is_in_memory(),
        "a database in memory is lost when this program exits"
    );
    store.check_schema()?;
    ensure!(store.is_empty()?, "the database already has keys");
    let started = Instant::now();
    let is_watched = std::io::stderr().is_terminal();
    let applications = population
        .applications()
        .collect::<anyhow::Result<Vec<_>>>()?;
    // Returns an error of the first key. An error of a later key ends the iterator, and the check below fails.
    population.key(0)?;
    let keys = (0..population.keys).map_while(move |number| population.key(number).ok());
    let mut all = 0;
    store.fill(applications.into_iter(), keys, |written| {
        all = written;
        if is_watched {
            eprint!("\r{written} keys");
            let _ = std::io::stderr().flush();
        }
    })?;
    ensure!(all == population.keys, "only {all} keys were created");
    let took = started.elapsed().as_secs_f64();
    eprintln!(
        "{}{} keys of {} accounts in {took:.0} s ({:.0} a second), {:.0} MB",
        if is_watched { "\r" } else { "" },
        population.keys,
        population.accounts,
        population.keys as f64 / took,
        store.size()? as f64 / 1e6
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use tollkey_core::key_format::CredentialKind;
    use tollkey_store::testing::backends;

    use super::*;

    const FEW: Population = Population {
        keys: 2_000,
        accounts: 7,
    };

    #[test]
    fn key_is_well_formed_and_derived_from_its_number() {
        for number in 0..FEW.keys {
            let (key, digest) = FEW.key(number).unwrap();
            let text = FEW.text(number);
            assert_eq!(
                CredentialKind::parse(&text),
                Some(CredentialKind::Key(key.family, Mode::Live))
            );
            assert_eq!(digest, Digest::of_key(&text));
            assert_eq!(FEW.key(number).unwrap(), (key, digest));
        }
        assert_ne!(FEW.text(1), FEW.text(1 + FEW.accounts));
    }

    #[test]
    fn generated_keys_are_found_and_a_second_fill_is_rejected() {
        for database in backends() {
            let store = database.store();
            fill(database.url(), FEW).unwrap();
            assert!(
                fill(database.url(), FEW)
                    .unwrap_err()
                    .to_string()
                    .contains("already")
            );
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            let mut restricted = 0;
            for number in (0..FEW.keys).step_by(13) {
                let (key, digest) = FEW.key(number).unwrap();
                let found = runtime
                    .block_on(store.find_by_digest(digest))
                    .unwrap()
                    .found
                    .unwrap();
                assert_eq!(
                    found.application.map(|application| application.id),
                    key.application_id
                );
                restricted += u32::from(
                    key.restrictions.rate_limit.is_some() && key.restrictions.expires_at.is_none(),
                );
                assert_eq!(found.key, key);
            }
            assert!(restricted > 0);
            assert!(store.size().unwrap() > 500_000);
        }
    }
}
