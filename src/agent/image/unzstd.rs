//! zstd files (RFC 8878), as layers of images are compressed.

use std::io::{self, Cursor, Read};

use ruzstd::decoding::{BlockDecodingStrategy, FrameDecoder};

use crate::agent::image::unpack::{INPUT_BYTES, invalid};

/// First bytes of a frame.
pub(super) const ZSTD_MAGIC: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];
/// First bytes of a frame to be skipped; the lowest half of the first byte is anything.
const SKIPPABLE_MAGIC: [u8; 4] = [0x50, 0x2a, 0x4d, 0x18];
/// Largest window of a frame, in bytes: what the decoder keeps in memory. All levels up to 19 need no
/// more, and RFC 8878 asks every decoder for so much.
const WINDOW_BYTES_MAX: u64 = 8 * 1024 * 1024;

/// Reads a zstd file, of one or several frames.
pub(super) struct Unzstd<R> {
    input: R,
    decoder: FrameDecoder,
    is_in_frame: bool,
}

impl<R: Read> Unzstd<R> {
    pub(super) fn new(input: R) -> Self {
        Self { input, decoder: FrameDecoder::new(), is_in_frame: false }
    }

    /// Reads on to the next frame with content. `false`: there is none.
    fn begin(&mut self) -> io::Result<bool> {
        loop {
            let mut magic = [0; 4];
            let mut count = 0;
            while let Some(rest) = magic.get_mut(count..).filter(|rest| !rest.is_empty()) {
                match self.input.read(rest)? {
                    0 if count == 0 => return Ok(false),
                    0 => return Err(damaged()),
                    more => count += more,
                }
            }
            let [first, rest @ ..] = magic;
            let [skippable, of_skippable @ ..] = SKIPPABLE_MAGIC;
            if first & 0xf0 == skippable && rest == of_skippable {
                let mut size = [0; 4];
                self.input.read_exact(&mut size)?;
                let size = u64::from(u32::from_le_bytes(size));
                let skipped = io::copy(&mut self.input.by_ref().take(size), &mut io::sink())?;
                if skipped < size {
                    return Err(damaged());
                }
                continue;
            }
            if magic != ZSTD_MAGIC {
                return Err(damaged());
            }
            let head = self.head()?;
            let frame = Cursor::new(head).chain(&mut self.input);
            self.decoder.reset(frame).map_err(|_| damaged())?;
            self.is_in_frame = true;
            return Ok(true);
        }
    }

    /// The head of a frame from its magic up to the size of its window, which is checked before the
    /// decoder makes room for it.
    fn head(&mut self) -> io::Result<Vec<u8>> {
        let mut head = ZSTD_MAGIC.to_vec();
        let descriptor = self.bytes(1, &mut head)?;
        let has_window = descriptor & 0x20 == 0;
        let window = if has_window {
            let byte = self.bytes(1, &mut head)?;
            let base = 1_u64 << (10 + (byte >> 3));
            base + base / 8 * (byte & 7)
        } else {
            let dictionary = match descriptor & 3 {
                3 => 4,
                bytes => bytes,
            };
            self.bytes(dictionary, &mut head)?;
            match descriptor >> 6 {
                0 => self.bytes(1, &mut head)?,
                1 => self.bytes(2, &mut head)?.saturating_add(256),
                2 => self.bytes(4, &mut head)?,
                _ => self.bytes(8, &mut head)?,
            }
        };
        if window > WINDOW_BYTES_MAX {
            return Err(invalid(format!(
                "the image's layer needs a zstd window of {window} bytes, more than the {WINDOW_BYTES_MAX} allowed; compress it with level 19 or lower"
            )));
        }
        Ok(head)
    }

    /// Reads up to 8 bytes as a number, and keeps them.
    fn bytes(&mut self, count: u64, head: &mut Vec<u8>) -> io::Result<u64> {
        let from = head.len();
        self.input.by_ref().take(count).read_to_end(head)?;
        let read = head.get(from..).unwrap_or_default();
        if read.len() as u64 != count {
            return Err(damaged());
        }
        Ok(read.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte)))
    }
}

fn damaged() -> io::Error {
    invalid("the image's layer is a damaged zstd file")
}

impl<R: Read> Read for Unzstd<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if into.is_empty() {
            return Ok(0);
        }
        loop {
            if !self.is_in_frame && !self.begin()? {
                return Ok(0);
            }
            let count = self.decoder.read(into)?;
            if count > 0 {
                return Ok(count);
            }
            if self.decoder.is_finished() {
                self.is_in_frame = false;
                continue;
            }
            let step = BlockDecodingStrategy::UptoBytes(INPUT_BYTES);
            self.decoder.decode_blocks(&mut self.input, step).map_err(|_| damaged())?;
        }
    }
}

#[cfg(test)]
mod tests {
    use ruzstd::encoding::{CompressionLevel, compress_to_vec};

    use super::*;

    fn read(bytes: &[u8]) -> io::Result<Vec<u8>> {
        let mut content = Vec::new();
        Unzstd::new(bytes).read_to_end(&mut content).map(|_| content)
    }

    #[test]
    fn frames_follow_one_another_and_some_are_skipped() {
        let frame = |text: &str| compress_to_vec(text.as_bytes(), CompressionLevel::Fastest);
        let mut file = frame("one ");
        file.extend([0x5a, 0x2a, 0x4d, 0x18, 3, 0, 0, 0, 9, 9, 9]);
        file.extend(frame("two"));
        assert_eq!(read(&file).unwrap(), b"one two");
        file.extend(b"rubbish");
        assert!(read(&file).is_err());
        assert!(read(&file[..file.len() - 9]).is_err());
    }

    #[test]
    fn a_window_that_is_too_large_is_refused_before_there_is_room_for_it() {
        // Window descriptors: 8 MiB, and the next larger one.
        let head = |descriptor: u8| [&ZSTD_MAGIC[..], &[0, descriptor, 1, 0, 0]].concat();
        assert_eq!(read(&head(13 << 3)).unwrap(), b"");
        let refused = read(&head((13 << 3) | 1)).unwrap_err();
        assert!(refused.to_string().contains("level 19"), "{refused}");
        // A frame of one segment has its content for a window.
        let single = [&ZSTD_MAGIC[..], &[0xe0, 1, 0, 0x80, 0, 0, 0, 0, 0, 1, 0, 0]].concat();
        assert!(read(&single).unwrap_err().to_string().contains("window"));
    }
}
