//! `sh`: lists, pipelines, variables, redirections. What it does not know (`if`, loops, functions,
//! subshells, arithmetic, backquotes) is a syntax error before anything of the text runs.
//!
//! ```text
//! list     = pipeline { ("&&" | "||" | ";" | newline) pipeline }
//! pipeline = [ "!" ] command { "|" command }
//! command  = { NAME=VALUE } { word | (">" | ">>" | "<" | "2>" | "2>>" | "2>&1") [ word ] }
//! ```

use std::cell::RefCell;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead as _, IsTerminal as _, Write};
use std::path::Path;
use std::rc::Rc;

use crate::cx::Cx;
use crate::sh::glob::matches;
use crate::sh::parse::{Part, Token, check, tokens};
use crate::sh::streams::{Shared, capture, take};

mod glob;
mod parse;
pub mod streams;

/// Code of a command that is not there.
const NOT_FOUND: i32 = 127;
/// Code of a text that cannot be read.
const SYNTAX: i32 = 2;
/// How deep `$(..)` may be nested.
const DEPTH_MAX: usize = 16;

/// Runs `-c TEXT [NAME [ARGUMENT]...]`, a script, or lines of standard input.
pub fn main(cx: &mut Cx, args: &[String]) -> i32 {
    let mut shell = Shell { last: 0, exit: None, parameters: Vec::new(), depth: 0 };
    let mut words = args.iter().skip(1).peekable();
    while words
        .next_if(|word| word.starts_with('-') && *word != "-c" && !word.contains('c'))
        .is_some()
    {}
    let code = match words.next() {
        Some(word) if word.starts_with('-') => {
            let text = words.next().cloned().unwrap_or_default();
            shell.parameters = words.cloned().collect();
            shell.run(cx, &text)
        }
        Some(file) => {
            shell.parameters = std::iter::once(file).chain(words).cloned().collect();
            match fs::read_to_string(cx.path(file)) {
                Ok(text) => shell.run(cx, &text),
                Err(error) => {
                    cx.fail("sh", file, &error);
                    NOT_FOUND
                }
            }
        }
        None => shell.interact(cx),
    };
    shell.exit.unwrap_or(code)
}

/// Runs one tool by its words.
pub fn run(cx: &mut Cx, words: &[String]) -> i32 {
    let Some(name) = words.first() else { return 0 };
    match crate::applet(name) {
        Some(applet) => applet(cx, words),
        None => {
            cx.say(&format!("sh: {name}: not found"));
            NOT_FOUND
        }
    }
}

struct Shell {
    /// `$?`.
    last: i32,
    /// Set by `exit`.
    exit: Option<i32>,
    /// `$0`, `$1`, ...
    parameters: Vec<String>,
    depth: usize,
}

/// One command of a pipeline, its words not yet replaced.
#[derive(Debug, Default, Clone)]
struct Command {
    words: Vec<Vec<Part>>,
    redirections: Vec<(&'static str, Option<Vec<Part>>)>,
}

impl Shell {
    /// Reads commands line by line until the end of input.
    fn interact(&mut self, cx: &mut Cx) -> i32 {
        let is_terminal = io::stdout().is_terminal();
        let input = std::mem::replace(&mut cx.input, Box::new(io::empty()));
        let mut lines = io::BufReader::new(input);
        loop {
            if is_terminal {
                let prompt = format!("{} # ", cx.cwd);
                cx.write(prompt.as_bytes());
            }
            cx.flush();
            let mut line = String::new();
            match lines.read_line(&mut line) {
                Ok(0) | Err(_) => return self.last,
                Ok(_) => {}
            }
            let code = self.run(cx, &line);
            cx.flush();
            if self.exit.is_some() {
                return code;
            }
        }
    }

    /// Runs a text and says the code of its last command.
    fn run(&mut self, cx: &mut Cx, text: &str) -> i32 {
        let tokens = match tokens(text).and_then(|tokens| check(&tokens).map(|()| tokens)) {
            Ok(tokens) => tokens,
            Err(why) => {
                cx.say(&format!("sh: syntax error: {why}"));
                self.last = SYNTAX;
                return SYNTAX;
            }
        };
        let (mut joined, mut pipeline) = (";", Vec::new());
        for token in tokens.into_iter().chain([Token::Operator(";")]) {
            let Token::Operator(operator @ (";" | "&&" | "||")) = token else {
                pipeline.push(token);
                continue;
            };
            let is_due = match joined {
                "&&" => self.last == 0,
                "||" => self.last != 0,
                _ => true,
            };
            let tokens = std::mem::take(&mut pipeline);
            if is_due && !tokens.is_empty() {
                self.last = self.pipeline(cx, tokens);
            }
            if self.exit.is_some() {
                break;
            }
            // What `&&` and `||` skip keeps the code that made them skip it.
            joined = operator;
        }
        self.last
    }

    fn pipeline(&mut self, cx: &mut Cx, tokens: Vec<Token>) -> i32 {
        let is_negated = tokens.first() == Some(&Token::Operator("!"));
        let mut commands = vec![Command::default()];
        let mut words = tokens.into_iter().skip(usize::from(is_negated));
        while let Some(token) = words.next() {
            let Some(command) = commands.last_mut() else { break };
            match token {
                Token::Word(word) => command.words.push(word),
                Token::Operator("|") => commands.push(Command::default()),
                Token::Operator("2>&1") => command.redirections.push(("2>&1", None)),
                Token::Operator(operator) => match words.next() {
                    Some(Token::Word(word)) => command.redirections.push((operator, Some(word))),
                    _ => {
                        cx.say("sh: syntax error: a redirection without a file");
                        return SYNTAX;
                    }
                },
            }
        }
        let mut code = 0;
        let count = commands.len();
        let input = std::mem::replace(&mut cx.input, Box::new(io::empty()));
        let mut piped = Some(input);
        for (at, command) in commands.into_iter().enumerate() {
            cx.input = piped.take().unwrap_or_else(|| Box::new(io::empty()));
            if at + 1 == count {
                code = self.command(cx, &command);
            } else {
                let (held, bytes) = capture();
                let output = std::mem::replace(&mut cx.output, Box::new(held));
                code = self.command(cx, &command);
                cx.output = output;
                piped = Some(Box::new(io::Cursor::new(take(&bytes))));
            }
        }
        if is_negated { i32::from(code == 0) } else { code }
    }

    fn command(&mut self, cx: &mut Cx, command: &Command) -> i32 {
        let words: Vec<String> =
            command.words.iter().flat_map(|word| self.expand(cx, word)).collect();
        let is_name = |word: &str| {
            word.split_once('=').is_some_and(|(name, _)| {
                !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
            })
        };
        let assigned = words.iter().take_while(|word| is_name(word)).count();
        let (assignments, words) = words.split_at(assigned);
        let before = cx.env.clone();
        for (name, value) in assignments.iter().filter_map(|word| word.split_once('=')) {
            cx.env.insert(name.to_owned(), value.to_owned());
        }
        if words.is_empty() && command.redirections.is_empty() {
            return 0;
        }
        let code = match self.redirect(cx, command) {
            Ok((output, error)) => {
                let code = self.invoke(cx, words);
                cx.flush();
                if let Some(output) = output {
                    cx.output = output;
                }
                if let Some(error) = error {
                    cx.error = error;
                }
                code
            }
            Err((name, error)) => {
                cx.fail("sh", &name, &error);
                1
            }
        };
        if assigned > 0 && !words.is_empty() {
            cx.env = before;
        }
        code
    }

    /// Puts files in the place of streams; returns the streams that were there.
    #[expect(clippy::type_complexity, reason = "two streams, or a file and why it failed")]
    fn redirect(
        &mut self,
        cx: &mut Cx,
        command: &Command,
    ) -> Result<(Option<Box<dyn Write>>, Option<Box<dyn Write>>), (String, io::Error)> {
        let (mut output, mut error) = (None, None);
        for (operator, word) in &command.redirections {
            let name =
                word.as_ref().map(|word| self.expand(cx, word).join(" ")).unwrap_or_default();
            let failed = |error| (name.clone(), error);
            let path = cx.path(&name);
            let open = |is_added: bool| -> io::Result<Box<dyn Write>> {
                if name == "/dev/null" {
                    return Ok(Box::new(io::sink()));
                }
                let mut options = OpenOptions::new();
                options.create(true).write(true).append(is_added).truncate(!is_added);
                Ok(Box::new(options.open(&path)?))
            };
            match *operator {
                "<" if name == "/dev/null" => cx.input = Box::new(io::empty()),
                "<" => cx.input = Box::new(File::open(&path).map_err(failed)?),
                ">" | ">>" => {
                    let file = open(*operator == ">>").map_err(failed)?;
                    let had = std::mem::replace(&mut cx.output, file);
                    output.get_or_insert(had);
                }
                "2>" | "2>>" => {
                    let file = open(*operator == "2>>").map_err(failed)?;
                    let had = std::mem::replace(&mut cx.error, file);
                    error.get_or_insert(had);
                }
                _ => {
                    // Both share what is standard output now.
                    let shared = Shared(Rc::new(RefCell::new(std::mem::replace(
                        &mut cx.output,
                        Box::new(io::sink()),
                    ))));
                    let had = std::mem::replace(&mut cx.error, Box::new(shared.clone()));
                    error.get_or_insert(had);
                    cx.output = Box::new(shared.clone());
                    if output.is_none() {
                        output = Some(Box::new(shared));
                    }
                }
            }
        }
        Ok((output, error))
    }

    fn invoke(&mut self, cx: &mut Cx, words: &[String]) -> i32 {
        let Some(name) = words.first() else { return 0 };
        let argument = words.get(1);
        match name.as_str() {
            ":" | "set" | "umask" | "trap" => 0,
            "exit" => {
                let code = argument.and_then(|word| word.parse().ok()).unwrap_or(self.last);
                self.exit = Some(code);
                code
            }
            "cd" => {
                let home = cx.env.get("HOME").cloned();
                let to = argument.cloned().or(home).unwrap_or_else(|| "/".to_owned());
                let path = cx.path(&to);
                if !Path::new(&path).is_dir() && path != "/" {
                    cx.say(&format!("sh: cd: can't cd to {to}: No such file or directory"));
                    return 2;
                }
                cx.env.insert("PWD".to_owned(), path.clone());
                cx.cwd = path;
                0
            }
            "export" => {
                for (name, value) in words.iter().skip(1).filter_map(|word| word.split_once('=')) {
                    cx.env.insert(name.to_owned(), value.to_owned());
                }
                0
            }
            "unset" => {
                words.iter().skip(1).for_each(|name| drop(cx.env.remove(name)));
                0
            }
            "exec" => {
                let code = run(cx, words.get(1..).unwrap_or_default());
                self.exit = Some(code);
                code
            }
            "sh" => main(cx, words),
            _ => run(cx, words),
        }
    }

    /// A word with variables and commands replaced, split and matched against files.
    fn expand(&mut self, cx: &mut Cx, parts: &[Part]) -> Vec<String> {
        let mut words: Vec<String> = Vec::new();
        let mut current: Option<String> = None;
        let mut is_pattern = false;
        for part in parts {
            let (text, is_quoted, is_split) = match part {
                Part::Text(text, is_quoted) => (text.clone(), *is_quoted, false),
                Part::Variable(name, is_quoted) => (self.variable(cx, name), *is_quoted, true),
                Part::Command(command, is_quoted) => (self.output(cx, command), *is_quoted, true),
            };
            if is_quoted || !is_split {
                is_pattern |= !is_quoted && text.contains('*');
                current.get_or_insert_default().push_str(&text);
                continue;
            }
            if text.starts_with(char::is_whitespace) {
                words.extend(current.take());
            }
            let mut pieces = text.split_whitespace().peekable();
            while let Some(piece) = pieces.next() {
                current.get_or_insert_default().push_str(piece);
                if pieces.peek().is_some() || text.ends_with(char::is_whitespace) {
                    words.extend(current.take());
                }
            }
        }
        words.extend(current);
        if is_pattern { words.iter().flat_map(|word| matches(cx, word)).collect() } else { words }
    }

    fn variable(&self, cx: &Cx, name: &str) -> String {
        match name {
            "?" => self.last.to_string(),
            "#" => self.parameters.len().saturating_sub(1).to_string(),
            "@" | "*" => self.parameters.get(1..).unwrap_or_default().join(" "),
            "$" => "1".to_owned(),
            _ => match name.parse::<usize>() {
                Ok(at) => self.parameters.get(at).cloned().unwrap_or_default(),
                Err(_) => {
                    let (name, otherwise) = name.split_once(":-").unwrap_or((name, ""));
                    let value = cx.env.get(name).filter(|value| !value.is_empty());
                    value.cloned().unwrap_or_else(|| otherwise.to_owned())
                }
            },
        }
    }

    /// What a command writes, without the line ends at its end.
    fn output(&mut self, cx: &mut Cx, command: &str) -> String {
        if self.depth >= DEPTH_MAX {
            return String::new();
        }
        self.depth += 1;
        let (held, bytes) = capture();
        let output = std::mem::replace(&mut cx.output, Box::new(held));
        let exit = self.exit;
        self.run(cx, command);
        // `exit` within it ends only it.
        self.exit = exit;
        cx.output = output;
        self.depth -= 1;
        let bytes = take(&bytes);
        String::from_utf8_lossy(&bytes).trim_end_matches('\n').to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sh(text: &str, input: &str) -> (String, i32) {
        let (held, bytes) = capture();
        let mut cx = Cx::of_process();
        cx.cwd = "/".to_owned();
        cx.env = [("NAME".to_owned(), "a b".to_owned())].into();
        cx.input = Box::new(io::Cursor::new(input.as_bytes().to_vec()));
        cx.output = Box::new(held);
        cx.error = Box::new(io::sink());
        let code = main(&mut cx, &["sh".to_owned(), "-c".to_owned(), text.to_owned()]);
        drop(cx);
        (String::from_utf8(take(&bytes)).unwrap(), code)
    }

    #[test]
    fn lists_pipelines_and_quotes() {
        let cases = [
            ("echo one; echo two", "one\ntwo\n", 0),
            ("false && echo no || echo yes", "yes\n", 0),
            ("true || echo no; echo $?", "0\n", 0),
            ("echo $NAME '$NAME' \"$NAME\"x", "a b $NAME a bx\n", 0),
            ("cat | wc -l", "2\n", 0),
            ("cat | grep -v b | cat", "a\n", 0),
            ("exit 3; echo no", "", 3),
            ("x=1 env | grep x; echo $x.", "x=1\n.\n", 0),
            ("y=5; echo ${y}0 ${z:-none}", "50 none\n", 0),
            ("echo $(echo a; echo b) \"$(exit 4)\"", "a b \n", 0),
            ("! true", "", 1),
            ("echo abcdef | head -c 3", "abc", 0),
            ("echo abcdef | tail -c3; echo abc | head -c 9", "ef\nabc\n", 0),
            ("cat | head -n1; echo a | head -f", "a\na\n", 0),
            ("nothing", "", 127),
            ("echo a 2>&1 >/dev/null; echo b", "b\n", 0),
            ("echo 'open", "", 2),
            ("# nothing\necho a # b\n", "a\n", 0),
            ("echo if then done '(x)' \"(y)\"", "if then done (x) (y)\n", 0),
        ];
        for (text, wanted, code) in cases {
            assert_eq!(sh(text, "a\nb\n"), (wanted.to_owned(), code), "{text}");
        }
    }

    #[test]
    fn a_text_with_what_the_shell_does_not_have_runs_nothing_of_it() {
        for text in [
            "echo ran; if false; then echo body; fi",
            "echo ran\nfor f in a b\ndo\necho $f\ndone\n",
            "while true; do echo ran; sleep 1; done",
            "echo ran && { echo body; }",
            "(echo ran)",
            "ran() { echo ran; }; ran",
            "echo ran `echo body`",
            "echo ran $((1 + 1))",
            "case x in x) echo ran;; esac",
        ] {
            assert_eq!(sh(text, ""), (String::new(), SYNTAX), "{text}");
        }
    }

    #[test]
    fn files_take_streams_and_fit_patterns() {
        let folder = std::env::temp_dir().join(format!("busybox-sh-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let at = folder.to_str().unwrap();
        let text = format!(
            "cd {at} && echo a > x.txt && echo b >> x.txt && echo c > y.txt && cat < x.txt && echo *.txt && pwd"
        );
        assert_eq!(sh(&text, ""), (format!("a\nb\nx.txt y.txt\n{at}\n"), 0));
        assert_eq!(sh(&format!("ls {at}/none 2>&1 | wc -l"), ""), ("1\n".to_owned(), 0));
        fs::remove_dir_all(folder).unwrap();
    }
}
