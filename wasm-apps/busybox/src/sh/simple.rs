//! Simple commands and redirections (POSIX shell, 2.7 and 2.9.1).

use std::fs::{File, OpenOptions};
use std::io;

use crate::cx::Cx;
use crate::sh::Shell;
use crate::sh::lex::Word;
use crate::sh::parse::assignment;
use crate::sh::streams::{Input, Output};

/// Commands whose arguments may be assignments, which are not split.
const DECLARING: [&str; 3] = ["export", "local", "readonly"];

impl Shell {
    /// Runs a function, a part of the shell, or a tool, with what is assigned for it alone.
    pub fn simple(
        &mut self,
        cx: &mut Cx,
        assignments: &[(String, Word)],
        words: &[Word],
        redirections: &[(&'static str, Word)],
    ) -> i32 {
        let mut fields: Vec<String> = Vec::new();
        for word in words {
            let declares = fields.first().is_some_and(|name| DECLARING.contains(&name.as_str()));
            match assignment(word).filter(|_| declares) {
                Some((name, value)) => fields.push(format!("{name}={}", self.text(cx, &value))),
                None => fields.extend(self.fields(cx, word)),
            }
        }
        let is_lasting = fields.is_empty();
        // Without a command the code is that of the last `$(..)`.
        if is_lasting {
            self.last = 0;
        }
        let mut before = Vec::new();
        for (name, value) in assignments {
            let value = self.text(cx, value);
            let had = cx.env.insert(name.clone(), value);
            before.push((name.clone(), had));
        }
        if self.leaving.is_some() {
            return self.last;
        }
        if self.options.trace && !is_lasting {
            cx.say(&format!("+ {}", fields.join(" ")));
        }
        let streams = (cx.input.clone(), cx.output.clone(), cx.error.clone());
        let code = match self.redirect(cx, redirections) {
            Ok(()) if is_lasting => self.last,
            Ok(()) => self.invoke(cx, &fields),
            Err((name, error)) => {
                cx.fail("sh", &name, &error);
                1
            }
        };
        cx.flush();
        // `exec` without a command puts the files in the place of the shell's own streams.
        if fields.len() != 1 || fields.first().is_none_or(|name| name != "exec") {
            (cx.input, cx.output, cx.error) = streams;
        }
        if !is_lasting {
            for (name, had) in before.into_iter().rev() {
                match had {
                    Some(value) => drop(cx.env.insert(name, value)),
                    None => drop(cx.env.remove(&name)),
                }
            }
        }
        code
    }

    /// Puts files in the place of streams.
    pub fn redirect(
        &mut self,
        cx: &mut Cx,
        redirections: &[(&'static str, Word)],
    ) -> Result<(), (String, io::Error)> {
        for (operator, word) in redirections {
            match *operator {
                "2>&1" => cx.error = cx.output.clone(),
                "1>&2" | ">&2" => cx.output = cx.error.clone(),
                "<<" => {
                    let text = self.text(cx, word);
                    cx.input = Input::new(io::Cursor::new(text.into_bytes()));
                }
                "<" => {
                    let name = self.text(cx, word);
                    cx.input = match name.as_str() {
                        "/dev/null" => Input::new(io::empty()),
                        "/dev/stdin" => cx.input.clone(),
                        _ => Input::new(File::open(cx.path(&name)).map_err(|error| (name, error))?),
                    };
                }
                ">&1" => {}
                operator => {
                    let name = self.text(cx, word);
                    let output =
                        open(cx, &name, operator.ends_with(">>")).map_err(|error| (name, error))?;
                    cx.flush();
                    if !operator.starts_with('2') {
                        cx.output = output.clone();
                    }
                    if operator.starts_with(['2', '&']) {
                        cx.error = output;
                    }
                }
            }
        }
        Ok(())
    }
}

fn open(cx: &Cx, name: &str, is_added: bool) -> io::Result<Output> {
    match name {
        "/dev/null" => return Ok(Output::new(io::sink())),
        "/dev/stdout" => return Ok(cx.output.clone()),
        "/dev/stderr" => return Ok(cx.error.clone()),
        _ => {}
    }
    let mut options = OpenOptions::new();
    options.create(true).write(true).append(is_added).truncate(!is_added);
    Ok(Output::new(options.open(cx.path(name))?))
}
