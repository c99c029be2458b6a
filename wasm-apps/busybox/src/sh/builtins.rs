//! Commands that change the shell itself (POSIX shell, 2.14).

use std::fs;
use std::path::Path;

use crate::cx::Cx;
use crate::sh::{Leave, NOT_FOUND, Shell, run};

/// Their names, for `command -v`.
const NAMES: &[&str] = &[
    ".", ":", "break", "cd", "command", "continue", "eval", "exec", "exit", "export", "local",
    "read", "readonly", "return", "set", "shift", "source", "trap", "type", "ulimit", "umask",
    "unset", "wait",
];

impl Shell {
    /// Runs a command by its fields: a function, a part of the shell, or a tool.
    pub fn invoke(&mut self, cx: &mut Cx, words: &[String]) -> i32 {
        let Some((name, arguments)) = words.split_first() else { return 0 };
        if let Some(function) = self.functions.get(name).cloned() {
            return self.call(cx, &function, words);
        }
        let first = arguments.first();
        let number = |otherwise: i32| match first {
            Some(word) => word.parse().unwrap_or(2),
            None => otherwise,
        };
        match name.as_str() {
            ":" | "umask" | "wait" | "ulimit" => 0,
            "exit" => self.leave(Leave::Exit, number(self.last)),
            "return" => self.leave(Leave::Return, number(self.last)),
            "break" => self.leave(Leave::Break(number(1).max(1)), 0),
            "continue" => self.leave(Leave::Continue(number(1).max(1)), 0),
            "cd" => self.change_folder(cx, first),
            "export" | "readonly" => {
                for (name, value) in arguments.iter().filter_map(|word| word.split_once('=')) {
                    cx.env.insert(name.to_owned(), value.to_owned());
                }
                0
            }
            "local" => self.keep_local(cx, arguments),
            "unset" => {
                for name in arguments.iter().filter(|name| !name.starts_with('-')) {
                    if cx.env.remove(name).is_none() {
                        self.functions.remove(name);
                    }
                }
                0
            }
            "set" => self.set(cx, arguments),
            "shift" => {
                let count = usize::try_from(number(1)).unwrap_or(0);
                if count >= self.parameters.len().max(1) {
                    return 1;
                }
                self.parameters.drain(1..=count);
                0
            }
            "trap" => {
                if let [command, signals @ ..] = arguments
                    && signals.iter().any(|signal| signal == "EXIT" || signal == "0")
                {
                    self.at_exit = (command != "-").then(|| command.clone());
                }
                0
            }
            "read" => self.read(cx, arguments),
            "eval" => self.run(cx, &arguments.join(" ")),
            "." | "source" => match first.map(|file| (file, fs::read_to_string(cx.path(file)))) {
                Some((_, Ok(text))) => self.run(cx, &text),
                Some((file, Err(error))) => {
                    cx.fail("sh", file, &error);
                    1
                }
                None => 2,
            },
            "exec" => {
                let code = self.invoke(cx, arguments);
                if arguments.is_empty() { 0 } else { self.leave(Leave::Exit, code) }
            }
            "command" | "type" => self.find(cx, name, arguments),
            _ => run(cx, words),
        }
    }

    /// Makes the commands around end until one of them is what `what` is about.
    fn leave(&mut self, what: Leave, code: i32) -> i32 {
        let is_known = match what {
            Leave::Break(_) | Leave::Continue(_) => self.loops > 0,
            Leave::Return | Leave::Exit => true,
        };
        if is_known {
            self.leaving = Some(what);
        }
        code
    }

    fn change_folder(&mut self, cx: &mut Cx, to: Option<&String>) -> i32 {
        let home = cx.env.get("HOME").cloned();
        let to = match to.map(String::as_str) {
            Some("-") => cx.env.get("OLDPWD").cloned(),
            to => to.map(str::to_owned).or(home),
        };
        let to = to.unwrap_or_else(|| "/".to_owned());
        let path = cx.path(&to);
        if !Path::new(&path).is_dir() && path != "/" {
            cx.say(&format!("sh: cd: can't cd to {to}: No such file or directory"));
            return 2;
        }
        cx.env.insert("OLDPWD".to_owned(), cx.cwd.clone());
        cx.env.insert("PWD".to_owned(), path.clone());
        cx.cwd = path;
        0
    }

    /// Variables that have their old values again when the function ends.
    fn keep_local(&mut self, cx: &mut Cx, words: &[String]) -> i32 {
        let Some(kept) = self.locals.last_mut() else {
            cx.say("sh: local: not in a function");
            return 1;
        };
        for word in words {
            let (name, value) = word.split_once('=').unwrap_or((word, ""));
            kept.push((name.to_owned(), cx.env.get(name).cloned()));
            cx.env.insert(name.to_owned(), value.to_owned());
        }
        0
    }

    fn set(&mut self, cx: &mut Cx, words: &[String]) -> i32 {
        let mut rest = words;
        while let Some((word, more)) = rest.split_first() {
            let Some((sign, letters)) = word.split_at_checked(1).filter(|(s, _)| "-+".contains(*s))
            else {
                break;
            };
            rest = more;
            if letters == "-" {
                break;
            }
            let is_on = sign == "-";
            for letter in letters.chars() {
                match letter {
                    'e' => self.options.exit_on_error = is_on,
                    'u' => self.options.no_unset = is_on,
                    'x' => self.options.trace = is_on,
                    'o' => {
                        let Some((name, more)) = rest.split_first() else { continue };
                        rest = more;
                        match name.as_str() {
                            "pipefail" => self.options.pipe_fails = is_on,
                            "errexit" => self.options.exit_on_error = is_on,
                            "nounset" => self.options.no_unset = is_on,
                            "xtrace" => self.options.trace = is_on,
                            _ => {
                                cx.say(&format!("sh: set: illegal option -o {name}"));
                                return 2;
                            }
                        }
                    }
                    _ => {}
                }
            }
        }
        if !rest.is_empty() || words.last().is_some_and(|word| word == "--") {
            self.parameters.truncate(1);
            if self.parameters.is_empty() {
                self.parameters.push("sh".to_owned());
            }
            self.parameters.extend_from_slice(rest);
        }
        0
    }

    /// `read [-r] [-p PROMPT] NAME...`: the last variable has the rest of the line.
    fn read(&mut self, cx: &mut Cx, words: &[String]) -> i32 {
        let (mut names, mut is_raw) = (Vec::new(), false);
        let mut words = words.iter();
        while let Some(word) = words.next() {
            match word.as_str() {
                "-r" => is_raw = true,
                "-p" => {
                    let prompt = words.next().cloned().unwrap_or_default();
                    cx.write(prompt.as_bytes());
                    cx.flush();
                }
                name => names.push(name.to_owned()),
            }
        }
        let line = cx.input.line().unwrap_or_default();
        let text = String::from_utf8_lossy(&line);
        let text = text.strip_suffix('\n').unwrap_or(&text);
        let text = if is_raw { text.to_owned() } else { text.replace('\\', "") };
        let marks = cx.env.get("IFS").cloned().unwrap_or_else(|| " \t\n".to_owned());
        let is_mark = |c: char| marks.contains(c);
        let is_blank = |c: char| is_mark(c) && c.is_whitespace();
        let mut rest = text.trim_start_matches(is_blank);
        if names.is_empty() {
            names.push("REPLY".to_owned());
        }
        let last = names.len() - 1;
        for (at, name) in names.into_iter().enumerate() {
            let value = if at == last {
                rest.trim_end_matches(is_blank)
            } else {
                let (value, more) = rest.split_at(rest.find(is_mark).unwrap_or(rest.len()));
                let more = more.trim_start_matches(is_blank);
                rest = match more.chars().next() {
                    Some(c) if is_mark(c) => more.get(c.len_utf8()..).unwrap_or_default(),
                    _ => more,
                };
                value
            };
            cx.env.insert(name, value.to_owned());
        }
        i32::from(line.last() != Some(&b'\n'))
    }

    /// `command NAME ...`, `command -v NAME`, `type NAME`.
    fn find(&mut self, cx: &mut Cx, how: &str, words: &[String]) -> i32 {
        let names = match words {
            [option, names @ ..] if option == "-v" || option == "-V" => names,
            names if how == "type" => names,
            words => return run(cx, words),
        };
        let mut code = 0;
        for name in names {
            let is_known = self.functions.contains_key(name)
                || NAMES.contains(&name.as_str())
                || crate::applet(name).is_some();
            if is_known {
                cx.line(name);
            } else {
                code = NOT_FOUND;
            }
        }
        code
    }
}
