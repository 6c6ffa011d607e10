//! Arithmetic in the field GF(2^8) with the polynomial x^8 + x^4 + x^3 + x + 1 (0x11B).
//!
//! It is the field of AES, so the CPU instruction `gf2p8mulb` could multiply in it directly.

/// Returns the product of two elements.
pub(super) const fn mul(a: u8, b: u8) -> u8 {
    let (mut a, mut b, mut product) = (a, b, 0);
    while b != 0 {
        if b & 1 != 0 {
            product ^= a;
        }
        let carry = a & 0x80 != 0;
        a <<= 1;
        if carry {
            a ^= 0x1b;
        }
        b >>= 1;
    }
    product
}

/// Multiplicative inverse of each element. 0 has no inverse; its entry is 0.
const INVERSES: [u8; 256] = inverses();

const fn inverses() -> [u8; 256] {
    let mut table = [0; 256];
    // 3 generates the multiplicative group; 0xf6 is its inverse.
    let (mut power, mut inverse) = (1, 1);
    let mut exponent = 0;
    while exponent < 255 {
        table[power as usize] = inverse;
        power = mul(power, 3);
        inverse = mul(inverse, 0xf6);
        exponent += 1;
    }
    table
}

/// Returns the inverse of an element, which must not be 0.
pub(super) const fn invert(a: u8) -> u8 {
    INVERSES[a as usize]
}

/// Products of every element `c` with `0..16` and with the multiples of 16.
///
/// The product of `c` and any byte is the sum of one entry of each table: that of the byte's low
/// four bits and that of its high four bits.
pub(super) static NIBBLES: [[[u8; 16]; 2]; 256] = nibbles();

const fn nibbles() -> [[[u8; 16]; 2]; 256] {
    let mut tables = [[[0; 16]; 2]; 256];
    let mut c = 0;
    while c < 256 {
        let mut nibble = 0;
        while nibble < 16 {
            #[expect(clippy::cast_possible_truncation, reason = "both count below 256")]
            let (factor, low) = (c as u8, nibble as u8);
            tables[c][0][nibble] = mul(factor, low);
            tables[c][1][nibble] = mul(factor, low << 4);
            nibble += 1;
        }
        c += 1;
    }
    tables
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_worked_product_of_fips_197_holds() {
        // FIPS 197, 4.2: {57} x {83} = {c1}.
        assert_eq!(mul(0x57, 0x83), 0xc1);
    }

    #[test]
    fn every_element_but_zero_has_its_inverse() {
        for a in 1..=255 {
            assert_eq!(mul(a, invert(a)), 1, "{a}");
        }
    }

    #[test]
    fn the_nibble_tables_give_every_product() {
        for c in 0..=255u8 {
            let [low, high] = &NIBBLES[usize::from(c)];
            for byte in 0..=255u8 {
                let product = low[usize::from(byte & 15)] ^ high[usize::from(byte >> 4)];
                assert_eq!(product, mul(c, byte));
            }
        }
    }
}
