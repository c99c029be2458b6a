//! What a system's terminal does between a keyboard and a program: lines, echo, the keys that erase,
//! end and interrupt. WASI has no terminals, so it is done here, for `exec -t` and `attach -t`.

use bytes::Bytes;

/// Longest line, in bytes; more keys are not taken until it is sent.
const LINE_BYTES_MAX: usize = 4096;
const INTERRUPT: u8 = 0x03;
const END: u8 = 0x04;
const BACKSPACE: [u8; 2] = [0x08, 0x7f];
const ERASE_LINE: u8 = 0x15;
const ESCAPE: u8 = 0x1b;

/// What keys led to.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Typed {
    /// For the screen.
    pub(super) echo: Vec<u8>,
    /// For the program: whole lines.
    pub(super) input: Vec<u8>,
    /// The program's input ends after that.
    pub(super) is_end: bool,
    /// The program is to end.
    pub(super) is_interrupt: bool,
}

/// Where the keyboard is within a key that sends several bytes.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Key {
    #[default]
    Plain,
    /// After an escape.
    Escape,
    /// After an escape and `[`: until a letter.
    Sequence,
}

/// The line being typed.
#[derive(Debug, Default)]
pub(super) struct Terminal {
    line: Vec<u8>,
    key: Key,
}

impl Terminal {
    /// Takes what the keyboard sent.
    pub(super) fn keys(&mut self, bytes: &[u8]) -> Typed {
        let mut typed = Typed::default();
        for byte in bytes {
            self.key(*byte, &mut typed);
        }
        typed
    }

    fn key(&mut self, byte: u8, typed: &mut Typed) {
        match (self.key, byte) {
            (Key::Escape, b'[' | b'O') => self.key = Key::Sequence,
            (Key::Escape, _) => self.key = Key::Plain,
            // Arrows and the like: there is no history and no editing within the line.
            (Key::Sequence, 0x40..=0x7e) => self.key = Key::Plain,
            (Key::Sequence, _) => {}
            (Key::Plain, ESCAPE) => self.key = Key::Escape,
            (Key::Plain, b'\r' | b'\n') => {
                self.line.push(b'\n');
                typed.input.append(&mut self.line);
                typed.echo.extend_from_slice(b"\r\n");
            }
            (Key::Plain, INTERRUPT) => {
                self.line.clear();
                typed.echo.extend_from_slice(b"^C\r\n");
                typed.is_interrupt = true;
            }
            (Key::Plain, END) => {
                typed.is_end |= self.line.is_empty();
                typed.input.append(&mut self.line);
            }
            (Key::Plain, ERASE_LINE) => while self.erase(typed) {},
            (Key::Plain, byte) if BACKSPACE.contains(&byte) => drop(self.erase(typed)),
            (Key::Plain, byte) if byte >= b' ' || byte == b'\t' => {
                if self.line.len() < LINE_BYTES_MAX {
                    self.line.push(byte);
                    typed.echo.push(byte);
                }
            }
            (Key::Plain, _) => {}
        }
    }

    /// Takes the last character back; `false` if there is none.
    fn erase(&mut self, typed: &mut Typed) -> bool {
        // The bytes of a character after its first begin with the bits 10.
        while self.line.last().is_some_and(|byte| byte & 0xc0 == 0x80) {
            self.line.pop();
        }
        let is_erased = self.line.pop().is_some();
        if is_erased {
            typed.echo.extend_from_slice(b"\x08 \x08");
        }
        is_erased
    }
}

/// What a program writes, for a screen: each line begins at the left.
pub(super) fn screen(bytes: &[u8]) -> Bytes {
    let mut shown = Vec::with_capacity(bytes.len() + bytes.len() / 16);
    for byte in bytes {
        if *byte == b'\n' {
            shown.push(b'\r');
        }
        shown.push(*byte);
    }
    shown.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_sent_when_it_is_whole_and_seen_while_it_is_typed() {
        let mut terminal = Terminal::default();
        let typed = terminal.keys(b"lx");
        assert_eq!((typed.echo.as_slice(), typed.input.as_slice()), (&b"lx"[..], &b""[..]));
        let typed = terminal.keys("\x7fs é\x7f/\r".as_bytes());
        assert_eq!(typed.input, b"ls /\n");
        assert!(typed.echo.ends_with(b"/\r\n"));
        assert_eq!(terminal.keys(b"a\x1b[Ab\x1bOC\x15x\n").input, b"x\n");
        assert_eq!(screen(b"a\nb"), "a\r\nb");
    }

    #[test]
    fn keys_end_and_interrupt() {
        let mut terminal = Terminal::default();
        assert!(terminal.keys(b"\x04").is_end);
        let typed = terminal.keys(b"abc\x04");
        assert_eq!((typed.input.as_slice(), typed.is_end), (&b"abc"[..], false));
        assert!(terminal.keys(b"abc\x03").is_interrupt);
        assert_eq!(terminal.keys(b"\n").input, b"\n");
        let long = vec![b'x'; LINE_BYTES_MAX * 2];
        terminal.keys(&long);
        assert_eq!(terminal.keys(b"\n").input.len(), LINE_BYTES_MAX + 1);
    }
}
