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

/// A piece of a line.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Token {
    /// A word in parts.
    Word(Vec<Part>),
    /// `&&`, `||`, `;`, `|`, `!`, or a redirection.
    Operator(&'static str),
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    /// As it stands; `true` if quoted, so that it is never split nor matched.
    Text(String, bool),
    /// A variable; `true` if quoted.
    Variable(String, bool),
    /// `$(..)`; `true` if quoted.
    Command(String, bool),
}

const OPERATORS: &[&str] = &["2>&1", "2>>", "&&", "||", ">>", "2>", "|", ";", "\n", ">", "<"];

/// Words that begin, go on with or end what this shell does not have.
const RESERVED: &[&str] = &[
    "if", "then", "elif", "else", "fi", "for", "while", "until", "do", "done", "case", "esac",
    "select", "function", "{", "}", "[[",
];

/// Refuses a text that uses what this shell does not have: run as far as it goes, its commands would
/// do what nobody asked for.
fn check(tokens: &[Token]) -> Result<(), String> {
    let mut begins = true;
    for token in tokens {
        match token {
            Token::Operator(operator) => {
                begins = matches!(*operator, ";" | "&&" | "||" | "|" | "!");
            }
            Token::Word(parts) => {
                if let [Part::Text(text, false)] = parts.as_slice()
                    && begins
                    && RESERVED.contains(&text.as_str())
                {
                    return Err(format!("{text:?} is not supported by this shell"));
                }
                begins = false;
            }
        }
    }
    Ok(())
}

fn tokens(text: &str) -> Result<Vec<Token>, String> {
    let mut found = Vec::new();
    let mut rest = text;
    loop {
        rest = rest.trim_start_matches([' ', '\t', '\r']);
        if rest.is_empty() {
            return Ok(found);
        }
        if rest.starts_with('#') {
            rest = rest.find('\n').and_then(|end| rest.get(end..)).unwrap_or_default();
            continue;
        }
        if let Some((operator, after)) =
            OPERATORS.iter().find_map(|operator| Some((*operator, rest.strip_prefix(operator)?)))
        {
            found.push(Token::Operator(if operator == "\n" { ";" } else { operator }));
            rest = after;
            continue;
        }
        if let Some(after) = rest.strip_prefix("! ") {
            found.push(Token::Operator("!"));
            rest = after;
            continue;
        }
        let (word, after) = word(rest)?;
        found.push(Token::Word(word));
        rest = after;
    }
}

/// Reads one word; returns what follows it.
fn word(text: &str) -> Result<(Vec<Part>, &str), String> {
    let mut parts = Vec::new();
    let mut rest = text;
    let mut is_quoted = false;
    while let Some(first) = rest.chars().next() {
        let after = rest.get(first.len_utf8()..).unwrap_or_default();
        match first {
            '"' => {
                is_quoted = !is_quoted;
                parts.push(Part::Text(String::new(), true));
                rest = after;
            }
            '\'' if !is_quoted => {
                let (inner, after) = after.split_once('\'').ok_or("unterminated quoted string")?;
                parts.push(Part::Text(inner.to_owned(), true));
                rest = after;
            }
            '\\' => {
                let next = after.chars().next().unwrap_or('\\');
                let keeps = is_quoted && !matches!(next, '"' | '\\' | '$' | '`');
                let text = if keeps { format!("\\{next}") } else { next.to_string() };
                parts.push(Part::Text(text, true));
                rest = after.get(next.len_utf8()..).unwrap_or_default();
            }
            '$' => {
                let (part, after) = dollar(after, is_quoted)?;
                parts.push(part);
                rest = after;
            }
            ' ' | '\t' | '\r' | '\n' | ';' | '|' | '&' | '<' | '>' if !is_quoted => break,
            '`' => return Err("backquotes are not supported, write $(..)".to_owned()),
            '(' | ')' if !is_quoted => {
                return Err("subshells and functions are not supported by this shell".to_owned());
            }
            other => {
                if let Some(Part::Text(text, quoted)) = parts.last_mut()
                    && *quoted == is_quoted
                {
                    text.push(other);
                } else {
                    parts.push(Part::Text(other.to_string(), is_quoted));
                }
                rest = after;
            }
        }
    }
    if is_quoted {
        return Err("unterminated quoted string".to_owned());
    }
    if rest.len() == text.len() {
        return Err(format!("unexpected {:?}", text.chars().next().unwrap_or(' ')));
    }
    Ok((parts, rest))
}

/// What a `$` stands for; `text` follows it.
fn dollar(text: &str, is_quoted: bool) -> Result<(Part, &str), String> {
    if text.starts_with("((") {
        return Err("arithmetic is not supported by this shell".to_owned());
    }
    if let Some(inner) = text.strip_prefix('(') {
        let mut depth = 1;
        for (at, c) in inner.char_indices() {
            depth += match c {
                '(' => 1,
                ')' => -1,
                _ => 0,
            };
            if depth == 0 {
                let command = inner.get(..at).unwrap_or_default().to_owned();
                return Ok((
                    Part::Command(command, is_quoted),
                    inner.get(at + 1..).unwrap_or_default(),
                ));
            }
        }
        return Err("unterminated $(".to_owned());
    }
    if let Some(inner) = text.strip_prefix('{') {
        let (name, after) = inner.split_once('}').ok_or("unterminated ${")?;
        return Ok((Part::Variable(name.to_owned(), is_quoted), after));
    }
    if let Some(special) =
        text.chars().next().filter(|c| "?@*#$".contains(*c) || c.is_ascii_digit())
    {
        let after = text.get(1..).unwrap_or_default();
        return Ok((Part::Variable(special.to_string(), is_quoted), after));
    }
    let end = text.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(text.len());
    let (name, after) = text.split_at(end);
    if name.is_empty() {
        return Ok((Part::Text("$".to_owned(), is_quoted), text));
    }
    Ok((Part::Variable(name.to_owned(), is_quoted), after))
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

/// Files whose name fits a pattern with `*` in its last part; the pattern itself if there is none.
fn matches(cx: &Cx, pattern: &str) -> Vec<String> {
    let (folder, last) = match pattern.rsplit_once('/') {
        Some((folder, last)) => (format!("{folder}/"), last),
        None => (String::new(), pattern),
    };
    let path = cx.path(if folder.is_empty() { "." } else { &folder });
    let names = fs::read_dir(path).into_iter().flatten().flatten();
    let mut found: Vec<String> = names
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| (last.starts_with('.') || !name.starts_with('.')) && fits(last, name))
        .map(|name| format!("{folder}{name}"))
        .collect();
    found.sort();
    if found.is_empty() { vec![pattern.to_owned()] } else { found }
}

fn fits(pattern: &str, name: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == name,
        Some((head, rest)) => name.strip_prefix(head).is_some_and(|name| {
            let ends = name.char_indices().map(|(at, _)| at).chain([name.len()]);
            ends.into_iter().any(|at| name.get(at..).is_some_and(|name| fits(rest, name)))
        }),
    }
}

/// A writer that several hold.
#[derive(Clone)]
struct Shared(Rc<RefCell<Box<dyn Write>>>);

impl Write for Shared {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.borrow_mut().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.borrow_mut().flush()
    }
}

/// A writer that keeps what it gets.
struct Held(Rc<RefCell<Vec<u8>>>);

impl Write for Held {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.borrow_mut().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn capture() -> (Held, Rc<RefCell<Vec<u8>>>) {
    let bytes = Rc::new(RefCell::new(Vec::new()));
    (Held(Rc::clone(&bytes)), bytes)
}

fn take(bytes: &Rc<RefCell<Vec<u8>>>) -> Vec<u8> {
    std::mem::take(&mut *bytes.borrow_mut())
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
