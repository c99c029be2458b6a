//! One client. Reads only when all earlier bytes are gone, so a slow reader slows itself.
//!
//! ```text
//! Reading ──bytes──► Writing ──all written──► Reading
//!    └──end of input──► Flushing ──all sent──► (send half closed, gone)
//! ```

use wasip2::io::poll::Pollable;
use wasip2::io::streams::{InputStream, OutputStream, StreamError};
use wasip2::sockets::tcp::{ShutdownType, TcpSocket};

/// Most that is read at once, in bytes.
const READ_BYTES_MAX: u64 = 16 * 1024;

enum State {
    Reading,
    Writing { rest: Vec<u8> },
    Flushing,
}

/// An accepted socket with its streams. Dropped in this order: children before their parents.
pub struct Connection {
    readable: Pollable,
    writable: Pollable,
    input: InputStream,
    output: OutputStream,
    socket: TcpSocket,
    state: State,
}

impl Connection {
    /// Starts with reading.
    pub fn new(socket: TcpSocket, input: InputStream, output: OutputStream) -> Self {
        let (readable, writable) = (input.subscribe(), output.subscribe());
        Self { readable, writable, input, output, socket, state: State::Reading }
    }

    /// What must be ready before [`Self::advance`] can do something.
    pub fn waits_for(&self) -> &Pollable {
        match self.state {
            State::Reading => &self.readable,
            State::Writing { .. } | State::Flushing => &self.writable,
        }
    }

    /// Moves what can be moved without waiting. `false` when the connection is done.
    pub fn advance(&mut self) -> bool {
        self.step().unwrap_or(false)
    }

    fn step(&mut self) -> Result<bool, StreamError> {
        if matches!(self.state, State::Reading) {
            self.state = match self.input.read(READ_BYTES_MAX) {
                Ok(bytes) if bytes.is_empty() => State::Reading,
                Ok(bytes) => State::Writing { rest: bytes },
                Err(StreamError::Closed) => {
                    self.output.flush()?;
                    State::Flushing
                }
                Err(broken) => return Err(broken),
            };
        }
        match &mut self.state {
            State::Reading => {}
            State::Writing { rest } => {
                let room = usize::try_from(self.output.check_write()?).unwrap_or(usize::MAX);
                let later = rest.split_off(room.min(rest.len()));
                self.output.write(rest)?;
                if later.is_empty() {
                    self.output.flush()?;
                    self.state = State::Reading;
                } else {
                    *rest = later;
                }
            }
            State::Flushing => {
                // A stream that takes bytes again has sent what it had.
                if self.output.check_write()? > 0 {
                    let _gone = self.socket.shutdown(ShutdownType::Send);
                    return Ok(false);
                }
            }
        }
        Ok(true)
    }
}
