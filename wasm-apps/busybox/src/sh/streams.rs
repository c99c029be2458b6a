//! Streams that several hold, and ones that are kept.

use std::cell::RefCell;
use std::io::{self, Write};
use std::rc::Rc;

/// A writer that several hold.
#[derive(Clone)]
pub struct Shared(pub Rc<RefCell<Box<dyn Write>>>);

impl Write for Shared {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.borrow_mut().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.borrow_mut().flush()
    }
}

/// A writer that keeps what it gets.
pub struct Held(Rc<RefCell<Vec<u8>>>);

impl Write for Held {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.borrow_mut().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

pub fn capture() -> (Held, Rc<RefCell<Vec<u8>>>) {
    let bytes = Rc::new(RefCell::new(Vec::new()));
    (Held(Rc::clone(&bytes)), bytes)
}

pub fn take(bytes: &Rc<RefCell<Vec<u8>>>) -> Vec<u8> {
    std::mem::take(&mut *bytes.borrow_mut())
}
