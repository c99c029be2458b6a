//! Streams that several commands hold, and ones that are kept.

use std::cell::RefCell;
use std::io::{self, Read, Write};
use std::rc::Rc;

/// Bytes that one command of a pipeline may hand to the next: they are kept in memory.
pub const PIPE_BYTES_MAX: usize = 16 << 20;

/// A writer that several hold.
#[derive(Clone)]
pub struct Output(Rc<RefCell<Box<dyn Write>>>);

impl Output {
    pub fn new(writer: impl Write + 'static) -> Self {
        Self(Rc::new(RefCell::new(Box::new(writer))))
    }
}

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.borrow_mut().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.borrow_mut().flush()
    }
}

/// A reader that several hold: what one has read, the next does not get.
#[derive(Clone)]
pub struct Input(Rc<RefCell<Box<dyn Read>>>);

impl Input {
    pub fn new(reader: impl Read + 'static) -> Self {
        Self(Rc::new(RefCell::new(Box::new(reader))))
    }

    /// One line with its end; empty at the end of input. Not a byte beyond it is taken.
    pub fn line(&mut self) -> io::Result<Vec<u8>> {
        let (mut line, mut byte) = (Vec::new(), [0]);
        while self.read(&mut byte)? == 1 {
            line.extend_from_slice(&byte);
            if byte == *b"\n" {
                break;
            }
        }
        Ok(line)
    }
}

impl Read for Input {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        self.0.borrow_mut().read(bytes)
    }
}

/// What was written to an [`Output`] that keeps it.
#[derive(Clone, Default)]
pub struct Kept(Rc<RefCell<Vec<u8>>>);

impl Kept {
    /// A writer whose bytes are kept here.
    pub fn output(&self) -> Output {
        Output::new(self.clone())
    }

    /// Takes them out.
    pub fn take(&self) -> Vec<u8> {
        std::mem::take(&mut *self.0.borrow_mut())
    }

    /// Whether no more are taken.
    pub fn is_full(&self) -> bool {
        self.0.borrow().len() >= PIPE_BYTES_MAX
    }
}

impl Write for Kept {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.is_full() {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        self.0.borrow_mut().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
