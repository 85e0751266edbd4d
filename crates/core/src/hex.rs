//! Bytes as hexadecimal digits.

use std::fmt::{self, Write as _};

use crate::Invalid;

/// Returns bytes as lower-case digits.
#[must_use]
pub fn encode(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(2 * bytes.len());
    for byte in bytes {
        let _ = write!(text, "{byte:02x}");
    }
    text
}

/// Prints bytes as lower-case digits.
pub(crate) fn write(bytes: &[u8], f: &mut fmt::Formatter<'_>) -> fmt::Result {
    bytes.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
}

/// Reads exactly `N` bytes from digits of either case.
pub(crate) fn read<const N: usize>(text: &str) -> Result<[u8; N], Invalid> {
    let rule = || Invalid::new(format!("must be {} hex digits", 2 * N));
    let digit = |byte: u8| char::from(byte).to_digit(16).ok_or_else(rule);
    let digits = text.as_bytes();
    if digits.len() != 2 * N {
        return Err(rule());
    }
    let mut bytes = [0; N];
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        *byte = (digit(pair[0])? << 4 | digit(pair[1])?) as u8;
    }
    Ok(bytes)
}
