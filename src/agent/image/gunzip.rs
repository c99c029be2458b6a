//! gzip files (RFC 1952), as layers of images are compressed.

use std::io::{self, Read};

use miniz_oxide::inflate::stream::{InflateState, inflate};
use miniz_oxide::{DataFormat, MZFlush, MZStatus};

use crate::agent::image::unpack::{INPUT_BYTES, invalid};

/// First bytes of a gzip file.
pub(super) const GZIP_MAGIC: [u8; 2] = [0x1f, 0x8b];

/// Reads a gzip file, of one or several members.
pub(super) struct Gunzip<R> {
    input: R,
    buffer: Vec<u8>,
    /// What of the buffer is not used yet.
    at: usize,
    state: Option<Box<InflateState>>,
}

impl<R: Read> Gunzip<R> {
    pub(super) fn new(input: R) -> Self {
        Self { input, buffer: Vec::new(), at: 0, state: None }
    }

    /// Whether there is input; reads more if there is none.
    fn fill(&mut self) -> io::Result<bool> {
        if self.at >= self.buffer.len() {
            self.buffer.resize(INPUT_BYTES, 0);
            let count = self.input.read(&mut self.buffer)?;
            self.buffer.truncate(count);
            self.at = 0;
        }
        Ok(self.at < self.buffer.len())
    }

    fn byte(&mut self) -> io::Result<Option<u8>> {
        if !self.fill()? {
            return Ok(None);
        }
        let byte = self.buffer.get(self.at).copied();
        self.at += 1;
        Ok(byte)
    }

    /// Reads the head of a member (RFC 1952). `false`: there is none.
    fn head(&mut self) -> io::Result<bool> {
        let damaged = || invalid("the image's layer is no gzip file");
        let Some(first) = self.byte()? else { return Ok(false) };
        if first == 0 {
            // Padding after the last member.
            return Ok(false);
        }
        let mut head = [first, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        for byte in head.iter_mut().skip(1) {
            *byte = self.byte()?.ok_or_else(damaged)?;
        }
        let flags = head[3];
        if !head.starts_with(&GZIP_MAGIC) || head[2] != 8 {
            return Err(damaged());
        }
        if flags & 4 != 0 {
            let low = self.byte()?.ok_or_else(damaged)?;
            let high = self.byte()?.ok_or_else(damaged)?;
            for _ in 0..u16::from_le_bytes([low, high]) {
                self.byte()?.ok_or_else(damaged)?;
            }
        }
        for text in [8, 16] {
            while flags & text != 0 && self.byte()?.ok_or_else(damaged)? != 0 {}
        }
        if flags & 2 != 0 {
            self.byte()?;
            self.byte()?;
        }
        self.state = Some(InflateState::new_boxed(DataFormat::Raw));
        Ok(true)
    }
}

impl<R: Read> Read for Gunzip<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if into.is_empty() {
            return Ok(0);
        }
        loop {
            if self.state.is_none() && !self.head()? {
                return Ok(0);
            }
            let has_input = self.fill()?;
            let input = self.buffer.get(self.at..).unwrap_or_default();
            let Some(state) = self.state.as_mut() else { return Ok(0) };
            let step = inflate(state, input, into, MZFlush::None);
            self.at += step.bytes_consumed;
            match step.status {
                Ok(MZStatus::StreamEnd) => {
                    self.state = None;
                    // Checksum and length: the blob's digest has been verified already.
                    for _ in 0..8 {
                        self.byte()?;
                    }
                }
                Ok(_) => {}
                Err(_) if has_input || step.bytes_written > 0 => {}
                Err(_) => return Err(invalid("the image's layer is a damaged gzip file")),
            }
            if step.bytes_written > 0 {
                return Ok(step.bytes_written);
            }
            if step.bytes_consumed == 0 && self.state.is_some() {
                return Err(invalid("the image's layer is a damaged gzip file"));
            }
        }
    }
}
