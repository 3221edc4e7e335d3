//! The internet's checksum.
//!
//! Owns: sums over bytes, of pseudo headers, and their folding.
//! Does not know: which field they are for, but for UDP's rule that zero means none.
//! Invariant: a sum is in the byte order of memory, so that what is folded is stored as it is.

/// The sum of 16-bit words; an odd last byte counts as if a zero followed.
pub(crate) fn sum(bytes: &[u8]) -> u64 {
    #[cfg(target_arch = "x86_64")]
    if bytes.len() >= WIDE && std::arch::is_x86_feature_detected!("avx2") {
        // SAFETY: the processor has what the function is compiled for.
        return unsafe { sum_wide(bytes) };
    }
    sum_by_four(bytes)
}

/// The same with registers of 32 bytes, which the compiler uses by itself once it may.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn sum_wide(bytes: &[u8]) -> u64 {
    sum_by_four(bytes)
}

/// In line, so that it is compiled for what its caller may use.
#[inline(always)]
fn sum_by_four(bytes: &[u8]) -> u64 {
    let mut blocks = bytes.chunks_exact(4);
    let mut total: u64 = 0;
    for block in &mut blocks {
        total += u64::from(u32::from_ne_bytes([block[0], block[1], block[2], block[3]]));
    }
    let rest = blocks.remainder();
    let mut last = [0; 4];
    last[..rest.len()].copy_from_slice(rest);
    total + u64::from(u32::from_ne_bytes(last))
}

/// The pseudo header's sum: addresses as they stand in the header, protocol, and length.
pub(crate) fn pseudo(addresses: &[u8], protocol: u8, length: usize) -> u64 {
    let length = u32::try_from(length).unwrap_or(u32::MAX);
    sum(addresses) + sum(&[0, protocol]) + u64::from(length.to_be())
}

/// Folds to 16 bits, not inverted.
pub(crate) fn fold(mut total: u64) -> u16 {
    while total > 0xffff {
        total = (total & 0xffff) + (total >> 16);
    }
    total as u16
}

/// What is stored in a checksum field, as bytes.
pub(crate) fn field(total: u64) -> [u8; 2] {
    (!fold(total)).to_ne_bytes()
}

/// The same for UDP, where zero would mean that there is none.
pub(crate) fn udp_field(total: u64) -> [u8; 2] {
    match field(total) {
        [0, 0] => [0xff, 0xff],
        bytes => bytes,
    }
}

/// Whether bytes that contain their checksum sum up, with the pseudo header's sum.
pub(crate) fn holds(pseudo: u64, bytes: &[u8]) -> bool {
    fold(pseudo + sum(bytes)) == 0xffff
}

/// Bytes from which on wide registers are worth their set-up.
#[cfg(target_arch = "x86_64")]
const WIDE: usize = 128;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Word by word, as RFC 1071 says it.
    fn plain(bytes: &[u8]) -> u16 {
        let mut total = 0_u32;
        for pair in bytes.chunks(2) {
            let word = [pair[0], pair.get(1).copied().unwrap_or(0)];
            total += u32::from(u16::from_be_bytes(word));
            total = (total & 0xffff) + (total >> 16);
        }
        total as u16
    }

    proptest! {
        #[test]
        fn the_sum_is_that_of_the_standard(bytes in prop::collection::vec(any::<u8>(), 0..3000)) {
            prop_assert_eq!(u16::from_be(fold(sum(&bytes))), plain(&bytes));
            prop_assert_eq!(sum(&bytes), sum_by_four(&bytes));
            let field = field(sum(&bytes));
            if bytes.len() % 2 == 0 {
                let whole = [bytes.as_slice(), &field].concat();
                prop_assert!(holds(0, &whole) || bytes.iter().all(|byte| *byte == 0));
            }
        }
    }

    #[test]
    fn the_example_of_the_standard() {
        let bytes = [0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7];
        assert_eq!(fold(sum(&bytes)).to_ne_bytes(), [0xdd, 0xf2]);
        assert_eq!(udp_field(sum(&[0xff, 0xff])), [0xff, 0xff]);
    }

    #[test]
    fn a_pseudo_header_is_addresses_protocol_and_length() {
        let addresses = [10, 0, 0, 1, 10, 0, 0, 2];
        let spelled = [addresses.as_slice(), &[0, 17, 0, 8]].concat();
        assert_eq!(fold(pseudo(&addresses, 17, 8)), fold(sum(&spelled)));
    }
}
