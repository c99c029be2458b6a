//! Makes commands of words and operators (POSIX shell, 2.9 and 2.10).
//!
//! ```text
//! list     = pipeline { ("&&" | "||" | ";" | newline) pipeline }
//! pipeline = [ "!" ] command { "|" command }
//! command  = ( simple | if | while | until | for | case | "{" list "}" | "(" list ")" | function )
//!            { redirection }
//! ```

use std::rc::Rc;

use crate::sh::lex::{Fault, Part, Token, Word, literal, name_end, tokens};

/// How deep commands may be nested.
const DEPTH_MAX: usize = 64;

pub type List = Vec<Step>;

/// A pipeline, and when it is run.
#[derive(Debug, PartialEq, Eq)]
pub struct Step {
    /// `"&&"`, `"||"`, or `";"` for always.
    pub joined: &'static str,
    pub is_negated: bool,
    pub commands: Vec<Command>,
}

#[derive(Debug, PartialEq, Eq)]
pub struct Command {
    pub body: Body,
    pub redirections: Vec<(&'static str, Word)>,
}

#[derive(Debug, PartialEq, Eq)]
pub enum Body {
    Simple {
        assignments: Vec<(String, Word)>,
        words: Vec<Word>,
    },
    /// Tests with what is done if they hold, and what is done otherwise.
    If(Vec<(List, List)>, List),
    Loop {
        is_until: bool,
        test: List,
        body: List,
    },
    /// `None`: over the parameters.
    For {
        name: String,
        words: Option<Vec<Word>>,
        body: List,
    },
    Case(Word, Vec<(Vec<Word>, List)>),
    Group(List),
    Subshell(List),
    Function(String, Rc<Command>),
}

/// Reads a whole text.
pub fn parse(text: &str) -> Result<List, Fault> {
    let tokens = tokens(text)?;
    let mut parser = Parser { rest: &tokens, depth: 0 };
    let list = parser.list()?;
    match parser.rest.first() {
        None => Ok(list),
        Some(token) => Err(unexpected(token)),
    }
}

fn unexpected(token: &Token) -> Fault {
    Fault::Wrong(match token {
        Token::Operator("\n") => "unexpected end of line".to_owned(),
        Token::Operator(operator) => format!("unexpected {operator:?}"),
        Token::Word(word) => format!("unexpected {:?}", literal(word)),
        Token::Document(_) => "unexpected here-document".to_owned(),
    })
}

struct Parser<'a> {
    rest: &'a [Token],
    depth: usize,
}

impl<'a> Parser<'a> {
    fn next(&mut self) -> Option<&'a Token> {
        let (first, rest) = self.rest.split_first()?;
        self.rest = rest;
        Some(first)
    }

    fn operator(&mut self, operator: &str) -> bool {
        let is_it = matches!(self.rest.first(), Some(Token::Operator(it)) if *it == operator);
        if is_it {
            self.next();
        }
        is_it
    }

    fn lines(&mut self) {
        while self.operator("\n") {}
    }

    /// The reserved word that comes next.
    fn reserved(&self) -> Option<&'a str> {
        match self.rest.first() {
            Some(Token::Word(word)) => match word.as_slice() {
                [Part::Text(text, false)] => Some(text.as_str()),
                _ => None,
            },
            _ => None,
        }
    }

    fn take(&mut self, word: &str) -> bool {
        let is_it = self.reserved() == Some(word);
        if is_it {
            self.next();
        }
        is_it
    }

    fn expect(&mut self, word: &str) -> Result<(), Fault> {
        if self.take(word) {
            return Ok(());
        }
        match self.rest.first() {
            Some(token) => match unexpected(token) {
                Fault::Wrong(text) => Err(Fault::Wrong(format!("{text}, expected {word:?}"))),
                other => Err(other),
            },
            None => Err(Fault::Unfinished(format!("expected {word:?}"))),
        }
    }

    /// Commands up to what cannot begin one.
    fn list(&mut self) -> Result<List, Fault> {
        let (mut list, mut joined) = (Vec::new(), ";");
        loop {
            self.lines();
            let ends = match self.rest.first() {
                None => true,
                Some(Token::Operator(operator)) => matches!(*operator, ")" | ";;"),
                _ => matches!(
                    self.reserved(),
                    Some("then" | "elif" | "else" | "fi" | "do" | "done" | "esac" | "}")
                ),
            };
            if ends {
                return match (joined, self.rest.first()) {
                    (";", _) => Ok(list),
                    (_, None) => Err(Fault::Unfinished(format!("a command after {joined:?}"))),
                    (_, Some(token)) => Err(unexpected(token)),
                };
            }
            list.push(self.pipeline(joined)?);
            joined = match self.rest.first() {
                Some(Token::Operator(operator @ ("&&" | "||"))) => operator,
                Some(Token::Operator(";" | "\n")) => ";",
                Some(Token::Operator("&")) => {
                    self.check_background()?;
                    ";"
                }
                _ => return Ok(list),
            };
            self.next();
        }
    }

    /// A pod has no processes beside the shell: what is to run in the background runs in the
    /// foreground if nothing but `wait` follows, and is refused otherwise.
    fn check_background(&self) -> Result<(), Fault> {
        let behind = self.rest.get(1..).unwrap_or_default();
        let next = behind.iter().find(|token| !matches!(token, Token::Operator("\n" | ";")));
        match next {
            None => Ok(()),
            Some(Token::Word(word)) if literal(word) == "wait" => Ok(()),
            Some(_) => Err(Fault::Wrong(
                "nothing can run in the background, a pod has no processes: \"&\" may only stand \
                 at the end or before wait"
                    .to_owned(),
            )),
        }
    }

    fn pipeline(&mut self, joined: &'static str) -> Result<Step, Fault> {
        let mut is_negated = false;
        while self.take("!") {
            is_negated = !is_negated;
        }
        let mut commands = vec![self.command()?];
        while self.operator("|") {
            self.lines();
            commands.push(self.command()?);
        }
        Ok(Step { joined, is_negated, commands })
    }

    fn command(&mut self) -> Result<Command, Fault> {
        self.depth += 1;
        if self.depth > DEPTH_MAX {
            return Err(Fault::Wrong("commands are nested too deep".to_owned()));
        }
        let body = self.body()?;
        let mut command = Command { body, redirections: Vec::new() };
        if !matches!(command.body, Body::Simple { .. }) {
            while self.redirection(&mut command.redirections)? {}
        } else if let Body::Simple { assignments, words } = &mut command.body {
            self.simple(assignments, words, &mut command.redirections)?;
        }
        self.depth -= 1;
        Ok(command)
    }

    fn body(&mut self) -> Result<Body, Fault> {
        if self.operator("(") {
            let list = self.list()?;
            if self.operator(")") {
                return Ok(Body::Subshell(list));
            }
            return Err(self
                .rest
                .first()
                .map_or_else(|| Fault::Unfinished("expected \")\"".to_owned()), unexpected));
        }
        let Some(word) = self.reserved() else {
            return Ok(Body::Simple { assignments: Vec::new(), words: Vec::new() });
        };
        if let [_, Token::Operator("("), Token::Operator(")"), ..] = self.rest {
            return self.function(word);
        }
        match word {
            "if" | "while" | "until" | "for" | "case" | "{" => drop(self.next()),
            "then" | "elif" | "else" | "fi" | "do" | "done" | "esac" | "}" | "in" => {
                return Err(Fault::Wrong(format!("unexpected {word:?}")));
            }
            "function" | "select" | "[[" => {
                return Err(Fault::Wrong(format!("{word:?} is not supported by this shell")));
            }
            _ => return Ok(Body::Simple { assignments: Vec::new(), words: Vec::new() }),
        }
        match word {
            "if" => self.conditional(),
            "while" | "until" => {
                let test = self.list()?;
                Ok(Body::Loop { is_until: word == "until", test, body: self.loop_body()? })
            }
            "for" => self.for_each(),
            "case" => self.case(),
            _ => {
                let list = self.list()?;
                self.expect("}")?;
                Ok(Body::Group(list))
            }
        }
    }

    fn function(&mut self, name: &str) -> Result<Body, Fault> {
        self.rest = self.rest.get(3..).unwrap_or_default();
        if name_end(name) != name.len() {
            return Err(Fault::Wrong(format!("{name:?} is no name of a function")));
        }
        self.lines();
        if self.rest.is_empty() {
            return Err(Fault::Unfinished("expected a function's body".to_owned()));
        }
        Ok(Body::Function(name.to_owned(), Rc::new(self.command()?)))
    }

    fn conditional(&mut self) -> Result<Body, Fault> {
        let mut arms = Vec::new();
        loop {
            let test = self.list()?;
            self.expect("then")?;
            arms.push((test, self.list()?));
            if self.take("elif") {
                continue;
            }
            let otherwise = if self.take("else") { self.list()? } else { Vec::new() };
            self.expect("fi")?;
            return Ok(Body::If(arms, otherwise));
        }
    }

    fn loop_body(&mut self) -> Result<List, Fault> {
        self.lines();
        self.expect("do")?;
        let body = self.list()?;
        self.expect("done")?;
        Ok(body)
    }

    fn word(&mut self, what: &str) -> Result<&'a Word, Fault> {
        match self.next() {
            Some(Token::Word(word)) => Ok(word),
            Some(token) => Err(unexpected(token)),
            None => Err(Fault::Unfinished(format!("expected {what}"))),
        }
    }

    fn for_each(&mut self) -> Result<Body, Fault> {
        let name = literal(self.word("a name")?);
        self.lines();
        let mut words = None;
        if self.take("in") {
            let list = words.insert(Vec::new());
            while let Some(Token::Word(word)) = self.rest.first() {
                list.push(word.clone());
                self.next();
            }
        }
        self.operator(";");
        Ok(Body::For { name, words, body: self.loop_body()? })
    }

    fn case(&mut self) -> Result<Body, Fault> {
        let word = self.word("a word")?.clone();
        self.lines();
        self.expect("in")?;
        let mut arms = Vec::new();
        loop {
            self.lines();
            if self.take("esac") {
                return Ok(Body::Case(word, arms));
            }
            self.operator("(");
            let mut patterns = vec![self.word("a pattern")?.clone()];
            while self.operator("|") {
                patterns.push(self.word("a pattern")?.clone());
            }
            if !self.operator(")") {
                return Err(self
                    .rest
                    .first()
                    .map_or_else(|| Fault::Unfinished("expected \")\"".to_owned()), unexpected));
            }
            arms.push((patterns, self.list()?));
            if !self.operator(";;") {
                self.expect("esac")?;
                return Ok(Body::Case(word, arms));
            }
        }
    }

    fn simple(
        &mut self,
        assignments: &mut Vec<(String, Word)>,
        words: &mut Vec<Word>,
        redirections: &mut Vec<(&'static str, Word)>,
    ) -> Result<(), Fault> {
        loop {
            if self.redirection(redirections)? {
                continue;
            }
            let Some(Token::Word(word)) = self.rest.first() else { break };
            self.next();
            match assignment(word).filter(|_| words.is_empty()) {
                Some(assignment) => assignments.push(assignment),
                None => words.push(word.clone()),
            }
        }
        if !assignments.is_empty() || !words.is_empty() || !redirections.is_empty() {
            return Ok(());
        }
        Err(self
            .rest
            .first()
            .map_or_else(|| Fault::Unfinished("expected a command".to_owned()), unexpected))
    }

    fn redirection(&mut self, found: &mut Vec<(&'static str, Word)>) -> Result<bool, Fault> {
        match self.rest.first() {
            Some(Token::Document(text)) => {
                found.push(("<<", text.clone()));
                self.next();
            }
            Some(Token::Operator(operator @ ("2>&1" | "1>&2" | ">&2" | ">&1"))) => {
                found.push((operator, Vec::new()));
                self.next();
            }
            Some(Token::Operator(
                operator @ (">" | ">>" | "<" | "1>" | "1>>" | "2>" | "2>>" | "&>" | "&>>"),
            )) => {
                self.next();
                found.push((operator, self.word("a file")?.clone()));
            }
            _ => return Ok(false),
        }
        Ok(true)
    }
}

/// A word of the form `NAME=VALUE`, taken apart.
pub fn assignment(word: &Word) -> Option<(String, Word)> {
    let (first, more) = word.split_first()?;
    let Part::Text(text, false) = first else { return None };
    let (name, value) = text.split_once('=')?;
    if name.is_empty()
        || name_end(name) != name.len()
        || name.starts_with(|c: char| c.is_ascii_digit())
    {
        return None;
    }
    let mut word = vec![Part::Text(value.to_owned(), false)];
    word.extend_from_slice(more);
    Some((name.to_owned(), word))
}
