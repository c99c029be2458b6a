//! `sh`: the command language of a POSIX shell, with all tools in it. A pod has no processes: a pipeline
//! runs one command after the other, and nothing runs in the background.
//!
//! A text that cannot be read, or that uses what is not here, is a syntax error before anything of it
//! runs.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, IsTerminal as _};
use std::rc::Rc;

use crate::cx::Cx;
use crate::sh::glob::fits;
use crate::sh::lex::Fault;
use crate::sh::parse::{Body, Command, List, parse};
use crate::sh::streams::{Input, Kept};

mod arithmetic;
mod builtins;
mod expand;
pub mod glob;
mod lex;
mod parse;
mod simple;
pub mod streams;

/// Code of a command that is not there.
const NOT_FOUND: i32 = 127;
/// Code of a text that cannot be read.
const SYNTAX: i32 = 2;
/// Code of a command whose reader takes no more.
const PIPE: i32 = 141;
/// How deep functions, `eval` and `$(..)` may be nested.
const CALLS_MAX: usize = 48;

/// Runs `-c TEXT [NAME [ARGUMENT]...]`, a script, or lines of standard input.
pub fn main(cx: &mut Cx, args: &[String]) -> i32 {
    let mut shell = Shell::default();
    let mut words = args.iter().skip(1).peekable();
    let mut is_text = false;
    while let Some(word) = words.next_if(|word| word.len() > 1 && word.starts_with('-')) {
        is_text |= word.contains('c');
        shell.options.exit_on_error |= word.contains('e');
        shell.options.trace |= word.contains('x');
        shell.options.no_unset |= word.contains('u');
        if is_text {
            break;
        }
    }
    let code = if is_text {
        let text = words.next().cloned().unwrap_or_default();
        shell.parameters = words.cloned().collect();
        if shell.parameters.is_empty() {
            shell.parameters.push("sh".to_owned());
        }
        shell.run(cx, &text)
    } else if let Some(file) = words.next() {
        shell.parameters = std::iter::once(file).chain(words).cloned().collect();
        match fs::read_to_string(cx.path(file)) {
            Ok(text) => shell.run(cx, &text),
            Err(error) => {
                cx.fail("sh", file, &error);
                NOT_FOUND
            }
        }
    } else {
        shell.interact(cx)
    };
    shell.end(cx, code)
}

/// Runs one tool by its words.
pub fn run(cx: &mut Cx, words: &[String]) -> i32 {
    let Some(name) = words.first() else { return 0 };
    match crate::run_applet(cx, words) {
        Some(code) => code,
        None => {
            cx.say(&format!("sh: {name}: not found"));
            NOT_FOUND
        }
    }
}

/// Which commands end before their time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Leave {
    /// The shell.
    Exit,
    /// The function.
    Return,
    /// So many loops.
    Break(i32),
    /// All but one of so many loops, which goes on with its next turn.
    Continue(i32),
}

/// What `set` sets.
#[derive(Debug, Clone, Copy, Default)]
struct Options {
    exit_on_error: bool,
    no_unset: bool,
    trace: bool,
    pipe_fails: bool,
}

#[derive(Default)]
struct Shell {
    /// `$?`.
    last: i32,
    leaving: Option<Leave>,
    /// `$0`, `$1`, ...
    parameters: Vec<String>,
    functions: BTreeMap<String, Rc<Command>>,
    /// Of each function that runs: variables and what they were before.
    locals: Vec<Vec<(String, Option<String>)>>,
    options: Options,
    /// Command of `trap .. EXIT`.
    at_exit: Option<String>,
    /// Loops around the present command.
    loops: usize,
    /// Tests around it, in which a failure ends nothing.
    tests: usize,
    /// Texts around it.
    calls: usize,
    /// Values around the present one.
    depth: usize,
    /// Where commands around the present one write, if that is kept for another to read.
    pipes: Vec<Kept>,
}

impl Shell {
    /// Reads commands line by line until the end of input.
    fn interact(&mut self, cx: &mut Cx) -> i32 {
        let is_terminal = io::stdout().is_terminal();
        self.parameters.push("sh".to_owned());
        let mut text = String::new();
        loop {
            if is_terminal {
                let prompt =
                    if text.is_empty() { format!("{} # ", cx.cwd) } else { "> ".to_owned() };
                cx.write(prompt.as_bytes());
            }
            cx.flush();
            let line = cx.input.line().unwrap_or_default();
            text.push_str(&String::from_utf8_lossy(&line));
            let is_unfinished = matches!(parse(&text), Err(Fault::Unfinished(_)));
            if is_unfinished && !line.is_empty() {
                continue;
            }
            if !text.is_empty() {
                self.run(cx, &std::mem::take(&mut text));
                cx.flush();
            }
            if line.is_empty() || self.leaving.take() == Some(Leave::Exit) {
                return self.last;
            }
        }
    }

    /// What is to be done when the shell ends.
    fn end(&mut self, cx: &mut Cx, code: i32) -> i32 {
        self.leaving = None;
        let Some(command) = self.at_exit.take() else { return code };
        self.last = code;
        self.options.exit_on_error = false;
        let after = self.run(cx, &command);
        if self.leaving == Some(Leave::Exit) { after } else { code }
    }

    /// Says what cannot be gone on with, and ends the shell.
    fn stop(&mut self, cx: &mut Cx, why: &str) {
        cx.say(&format!("sh: {why}"));
        self.last = SYNTAX;
        self.leaving = Some(Leave::Exit);
    }

    /// Runs a text and says the code of its last command.
    fn run(&mut self, cx: &mut Cx, text: &str) -> i32 {
        if self.calls >= CALLS_MAX {
            self.stop(cx, "commands call each other too deep");
            return SYNTAX;
        }
        match parse(text) {
            Ok(list) => {
                self.calls += 1;
                self.last = self.list(cx, &list);
                self.calls -= 1;
            }
            Err(fault) => {
                cx.say(&format!("sh: syntax error: {}", fault.text()));
                self.last = SYNTAX;
            }
        }
        self.last
    }

    fn list(&mut self, cx: &mut Cx, list: &List) -> i32 {
        for (at, step) in list.iter().enumerate() {
            let is_due = match step.joined {
                "&&" => self.last == 0,
                "||" => self.last != 0,
                _ => true,
            };
            if !is_due {
                continue;
            }
            // What is before `&&` and `||` is a test, and so is what is negated.
            let is_test = step.is_negated
                || list.get(at + 1).is_some_and(|next| matches!(next.joined, "&&" | "||"));
            self.tests += usize::from(is_test);
            let mut code = self.pipeline(cx, &step.commands);
            self.tests -= usize::from(is_test);
            if self.leaving.is_none() && step.is_negated {
                code = i32::from(code == 0);
            }
            self.last = code;
            if code != 0 && self.options.exit_on_error && self.tests == 0 && !is_test {
                self.leaving.get_or_insert(Leave::Exit);
            }
            if self.pipes.last().is_some_and(Kept::is_full) && self.leaving.is_none() {
                self.leaving = Some(Leave::Exit);
                self.last = PIPE;
                return PIPE;
            }
            if self.leaving.is_some() {
                return self.last;
            }
        }
        if list.is_empty() { 0 } else { self.last }
    }

    fn pipeline(&mut self, cx: &mut Cx, commands: &[Command]) -> i32 {
        if let [command] = commands {
            return self.command(cx, command);
        }
        let (input, output) = (cx.input.clone(), cx.output.clone());
        let (mut code, mut failed) = (0, 0);
        for (at, command) in commands.iter().enumerate() {
            if at + 1 == commands.len() {
                cx.output = output.clone();
                code = self.apart(cx, |shell, cx| shell.command(cx, command));
            } else {
                let kept = Kept::default();
                cx.output = kept.output();
                self.pipes.push(kept.clone());
                code = self.apart(cx, |shell, cx| shell.command(cx, command));
                self.pipes.pop();
                cx.input = Input::new(io::Cursor::new(kept.take()));
            }
            if code != 0 {
                failed = code;
            }
        }
        (cx.input, cx.output) = (input, output);
        if self.options.pipe_fails { failed } else { code }
    }

    /// Runs something as if in a process of its own: what it sets is gone afterwards.
    fn apart(&mut self, cx: &mut Cx, act: impl FnOnce(&mut Self, &mut Cx) -> i32) -> i32 {
        let (env, cwd) = (cx.env.clone(), cx.cwd.clone());
        let (parameters, functions) = (self.parameters.clone(), self.functions.clone());
        let (options, loops) = (self.options, std::mem::take(&mut self.loops));
        let at_exit = self.at_exit.take();
        let code = act(self, cx);
        let code = self.end(cx, code);
        self.leaving = None;
        (cx.env, cx.cwd) = (env, cwd);
        (self.parameters, self.functions) = (parameters, functions);
        (self.options, self.loops, self.at_exit) = (options, loops, at_exit);
        code
    }

    fn command(&mut self, cx: &mut Cx, command: &Command) -> i32 {
        if let Body::Simple { assignments, words } = &command.body {
            return self.simple(cx, assignments, words, &command.redirections);
        }
        let streams = (cx.input.clone(), cx.output.clone(), cx.error.clone());
        let code = match self.redirect(cx, &command.redirections) {
            Ok(()) => self.compound(cx, &command.body),
            Err((name, error)) => {
                cx.fail("sh", &name, &error);
                1
            }
        };
        cx.flush();
        (cx.input, cx.output, cx.error) = streams;
        code
    }

    fn compound(&mut self, cx: &mut Cx, body: &Body) -> i32 {
        match body {
            Body::Simple { .. } => 0,
            Body::If(arms, otherwise) => {
                for (test, list) in arms {
                    let is_true = self.test(cx, test);
                    if self.leaving.is_some() {
                        return self.last;
                    }
                    if is_true {
                        return self.list(cx, list);
                    }
                }
                self.last = 0;
                self.list(cx, otherwise)
            }
            Body::Loop { is_until, test, body } => {
                let mut code = 0;
                while self.test(cx, test) != *is_until && self.leaving.is_none() {
                    code = self.turn(cx, body);
                    if self.is_loop_over() {
                        break;
                    }
                }
                code
            }
            Body::For { name, words, body } => {
                let words = match words {
                    Some(words) => words.iter().flat_map(|word| self.fields(cx, word)).collect(),
                    None => self.parameters.get(1..).unwrap_or_default().to_vec(),
                };
                let mut code = 0;
                for word in words {
                    cx.env.insert(name.clone(), word);
                    code = self.turn(cx, body);
                    if self.is_loop_over() {
                        break;
                    }
                }
                code
            }
            Body::Case(word, arms) => {
                let text = self.text(cx, word);
                for (patterns, list) in arms {
                    if patterns.iter().any(|pattern| fits(&self.pattern(cx, pattern), &text)) {
                        self.last = 0;
                        return self.list(cx, list);
                    }
                }
                0
            }
            Body::Group(list) => self.list(cx, list),
            Body::Subshell(list) => self.apart(cx, |shell, cx| shell.list(cx, list)),
            Body::Function(name, command) => {
                self.functions.insert(name.clone(), Rc::clone(command));
                0
            }
        }
    }

    fn test(&mut self, cx: &mut Cx, list: &List) -> bool {
        self.tests += 1;
        let code = self.list(cx, list);
        self.tests -= 1;
        code == 0
    }

    /// One turn of a loop.
    fn turn(&mut self, cx: &mut Cx, body: &List) -> i32 {
        self.loops += 1;
        self.last = 0;
        let code = self.list(cx, body);
        self.loops -= 1;
        code
    }

    /// Whether the loop whose turn has ended is over.
    fn is_loop_over(&mut self) -> bool {
        match self.leaving {
            None => false,
            Some(Leave::Continue(1)) => {
                self.leaving = None;
                false
            }
            Some(Leave::Break(1)) => {
                self.leaving = None;
                true
            }
            Some(Leave::Break(more)) if self.loops > 0 => {
                self.leaving = Some(Leave::Break(more - 1));
                true
            }
            Some(Leave::Continue(more)) if self.loops > 0 => {
                self.leaving = Some(Leave::Continue(more - 1));
                true
            }
            Some(Leave::Break(_) | Leave::Continue(_)) => {
                self.leaving = None;
                true
            }
            Some(_) => true,
        }
    }

    /// Runs a function with these words as its parameters.
    fn call(&mut self, cx: &mut Cx, function: &Command, words: &[String]) -> i32 {
        if self.calls >= CALLS_MAX {
            self.stop(cx, "commands call each other too deep");
            return SYNTAX;
        }
        let mut parameters = words.to_vec();
        if let (Some(name), Some(own)) = (parameters.first_mut(), self.parameters.first()) {
            name.clone_from(own);
        }
        let parameters = std::mem::replace(&mut self.parameters, parameters);
        let loops = std::mem::take(&mut self.loops);
        self.locals.push(Vec::new());
        self.calls += 1;
        self.last = 0;
        let code = self.command(cx, function);
        self.calls -= 1;
        for (name, value) in self.locals.pop().unwrap_or_default().into_iter().rev() {
            match value {
                Some(value) => drop(cx.env.insert(name, value)),
                None => drop(cx.env.remove(&name)),
            }
        }
        (self.parameters, self.loops) = (parameters, loops);
        if self.leaving == Some(Leave::Return) {
            self.leaving = None;
        }
        code
    }

    /// What a command writes, without the line ends at its end.
    fn output(&mut self, cx: &mut Cx, command: &str) -> String {
        let kept = Kept::default();
        let output = std::mem::replace(&mut cx.output, kept.output());
        self.pipes.push(kept.clone());
        let code = self.apart(cx, |shell, cx| shell.run(cx, command));
        self.pipes.pop();
        self.last = code;
        cx.output = output;
        String::from_utf8_lossy(&kept.take()).trim_end_matches('\n').to_owned()
    }
}

#[cfg(test)]
#[path = "sh/sh_test.rs"]
mod tests;
