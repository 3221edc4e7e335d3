//! Fixed-width base 36 text of big-endian byte strings.
//!
//! Owns: the conversion both ways. Does not know: what the bytes mean.
//! Invariant: one value has one text; overlong, short and overflowing texts are refused.

/// Digits of `bytes` (big-endian), padded with `0` on the left to `width` characters.
///
/// # Panics
/// When the number does not fit into `width` digits: the caller fixes both.
#[must_use]
pub fn encode(bytes: &[u8], width: usize) -> String {
    let mut number = bytes.to_vec();
    let mut text = vec![b'0'; width];
    for slot in text.iter_mut().rev() {
        *slot = DIGITS[usize::from(divide_by_36(&mut number))];
    }
    assert!(number.iter().all(|byte| *byte == 0), "width is enough for the number");
    zeroize::Zeroize::zeroize(&mut number);
    text.into_iter().map(char::from).collect()
}

/// The `N` bytes (big-endian) whose text this is; `None` for any other text.
#[must_use]
pub fn decode<const N: usize>(text: &str, width: usize) -> Option<[u8; N]> {
    if text.len() != width {
        return None;
    }
    let mut number = [0u8; N];
    for byte in text.bytes() {
        let mut carry = u32::from(match byte {
            b'0'..=b'9' => byte - b'0',
            b'a'..=b'z' => byte - b'a' + 10,
            _ => return None,
        });
        for slot in number.iter_mut().rev() {
            let sum = u32::from(*slot) * 36 + carry;
            *slot = (sum & 0xFF) as u8;
            carry = sum >> 8;
        }
        if carry != 0 {
            return None;
        }
    }
    Some(number)
}

/// Divides in place and returns the remainder, which is below 36.
fn divide_by_36(number: &mut [u8]) -> u8 {
    let mut rest: u32 = 0;
    for slot in number {
        let value = rest << 8 | u32::from(*slot);
        *slot = (value / 36) as u8;
        rest = value % 36;
    }
    rest as u8
}

const DIGITS: &[u8; 36] = b"0123456789abcdefghijklmnopqrstuvwxyz";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_texts() {
        assert_eq!(encode(&[0; 16], 25), "0".repeat(25));
        assert_eq!(encode(&35u128.to_be_bytes(), 25), format!("{}z", "0".repeat(24)));
        assert_eq!(encode(&36u128.to_be_bytes(), 25), format!("{}10", "0".repeat(23)));
        assert_eq!(encode(&u128::MAX.to_be_bytes(), 25), "f5lxx1zz5pnorynqglhzmsp33");
    }

    #[test]
    fn overflow_and_foreign_characters_are_refused() {
        for text in ["f5lxx1zz5pnorynqglhzmsp34", "zzzzzzzzzzzzzzzzzzzzzzzzz", "0", "A", ""] {
            assert_eq!(decode::<16>(text, 25), None, "{text}");
        }
        assert_eq!(decode::<16>(&"-".repeat(25), 25), None);
    }

    proptest::proptest! {
        #[test]
        fn comes_back(bytes: [u8; 32]) {
            let text = encode(&bytes, 50);
            proptest::prop_assert_eq!(text.len(), 50);
            proptest::prop_assert_eq!(decode::<32>(&text, 50), Some(bytes));
        }
    }
}
