//! Objects as they rest in the log: their JSON, deflated (RFC 1951) where that pays.
//!
//! Every change of an object is written whole: to the log and the state of each server, and to its memory for
//! as long as the history is kept. A Pod shrinks to two fifths, for a fraction of what parsing it
//! takes.
//!
//! ```text
//! 0 mark   1 bytes of the JSON, little endian   5 deflated JSON
//! ```
//!
//! What does not begin with the mark is plain JSON: small objects, and what was written before there was
//! this form.

use std::borrow::Cow;

use miniz_oxide::deflate::compress_to_vec;
use miniz_oxide::inflate::decompress_to_vec_with_limit;

use crate::store::StoreError;
use crate::store::object::OBJECT_BYTES_MAX;

/// No JSON begins with it.
const MARK: u8 = 1;
/// Bytes before the deflated JSON.
const HEAD_BYTES: usize = 5;
/// Smaller objects stay as they are.
const PACKED_BYTES_MIN: usize = 512;
/// How much is tried: names of fields that come again are found with the least.
const LEVEL: u8 = 1;

/// The bytes to store for an object's JSON.
pub(super) fn pack(json: Vec<u8>) -> Vec<u8> {
    let Ok(length) = u32::try_from(json.len()) else { return json };
    if json.len() < PACKED_BYTES_MIN {
        return json;
    }
    let deflated = compress_to_vec(&json, LEVEL);
    if deflated.len() + HEAD_BYTES >= json.len() {
        return json;
    }
    [&[MARK], length.to_le_bytes().as_slice(), &deflated].concat()
}

/// The JSON again.
///
/// # Errors
///
/// [`StoreError::Damaged`].
pub(super) fn unpack(stored: &[u8]) -> Result<Cow<'_, [u8]>, StoreError> {
    let Some((length, deflated)) = split(stored) else { return Ok(Cow::Borrowed(stored)) };
    let damaged = |why: &str| StoreError::Damaged(format!("cannot inflate an object: {why}"));
    if length > OBJECT_BYTES_MAX {
        return Err(damaged("it says that it is too large"));
    }
    let json = decompress_to_vec_with_limit(deflated, length)
        .map_err(|cause| damaged(&cause.to_string()))?;
    if json.len() != length {
        return Err(damaged("it is not as long as it says"));
    }
    Ok(Cow::Owned(json))
}

/// How long the JSON is.
pub(super) fn json_bytes(stored: &[u8]) -> usize {
    split(stored).map_or(stored.len(), |(length, _)| length)
}

/// Length of the JSON, and what is deflated; `None` if nothing is.
fn split(stored: &[u8]) -> Option<(usize, &[u8])> {
    let (head, deflated) = stored.split_first_chunk::<HEAD_BYTES>()?;
    let [MARK, a, b, c, d] = *head else { return None };
    Some((usize::try_from(u32::from_le_bytes([a, b, c, d])).ok()?, deflated))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rt::Rng;

    fn pod() -> Vec<u8> {
        let condition = r#"{"type":"Ready","status":"True","lastTransitionTime":"2026-01-01"}"#;
        format!("[{}]", vec![condition; 40].join(",")).into_bytes()
    }

    #[test]
    fn what_is_packed_is_much_smaller_and_comes_out_as_it_went_in() {
        let packed = pack(pod());
        assert!(packed.len() < pod().len() / 5, "{}", packed.len());
        assert_eq!(unpack(&packed).unwrap().as_ref(), pod());
        assert_eq!(json_bytes(&packed), pod().len());
    }

    #[test]
    fn what_is_small_or_does_not_shrink_stays_as_it_is() {
        let mut noise = vec![0; 4000];
        Rng::seeded(1).fill(&mut noise);
        noise[0] = b'{';
        for json in [b"{}".to_vec(), vec![b' '; PACKED_BYTES_MIN - 1], noise] {
            assert_eq!(pack(json.clone()), json);
            assert_eq!(unpack(&json).unwrap().as_ref(), json);
            assert_eq!(json_bytes(&json), json.len());
        }
    }

    #[test]
    fn damage_is_noticed() {
        let packed = pack(pod());
        let cut = packed[..packed.len() - 3].to_vec();
        let mut longer = packed.clone();
        longer[1] ^= 1;
        let mut huge = packed.clone();
        huge[4] = 0xff;
        for bad in [cut, longer, huge, packed[..HEAD_BYTES].to_vec()] {
            assert!(matches!(unpack(&bad), Err(StoreError::Damaged(_))), "{bad:?}");
        }
    }
}
