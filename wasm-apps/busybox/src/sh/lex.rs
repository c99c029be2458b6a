//! Reads a text into words and operators (POSIX shell, 2.3).

/// A piece of a text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Token {
    /// A word in parts.
    Word(Word),
    /// A control operator or a redirection; a line end is `"\n"`.
    Operator(&'static str),
    /// `<<`: the text up to its delimiter.
    Document(Word),
}

pub type Word = Vec<Part>;

/// A piece of a word. What is quoted is neither split nor matched against files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Part {
    /// As it stands; `true` if quoted.
    Text(String, bool),
    /// `$NAME` or `${NAME..}`.
    Variable { name: String, change: Option<Change>, is_quoted: bool },
    /// `$(..)` or backquotes; `true` if quoted.
    Command(String, bool),
    /// `$((..))`; `true` if quoted.
    Arithmetic(Word, bool),
}

/// What `${NAME..}` makes of the value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// `-`, `=`, `+` or `?`, with or without a colon; `#`, `##`, `%`, `%%`; `length`.
    pub operator: &'static str,
    pub word: Word,
}

/// Why a text cannot be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// It ends in the middle: more lines may make it whole.
    Unfinished(String),
    /// Nothing behind it can help.
    Wrong(String),
}

impl Fault {
    pub fn text(&self) -> &str {
        match self {
            Self::Unfinished(text) | Self::Wrong(text) => text,
        }
    }
}

const OPERATORS: &[&str] = &[
    "2>&1", "1>&2", "2>>", "1>>", "&>>", ">&2", ">&1", "2>", "1>", "&>", "&&", "||", ";;", ">>",
    "|", ";", "&", "\n", ">", "<", "(", ")",
];
const CHANGES: &[&str] = &[":-", ":=", ":+", ":?", "##", "%%", "-", "=", "+", "?", "#", "%"];
/// How deep words may be nested in words.
const DEPTH_MAX: usize = 32;

fn unfinished<T>(what: &str) -> Result<T, Fault> {
    Err(Fault::Unfinished(format!("unterminated {what}")))
}

/// Reads all of a text.
pub fn tokens(text: &str) -> Result<Vec<Token>, Fault> {
    let mut found = Vec::new();
    // Documents whose text begins on the next line: where they go, what ends them, and how.
    let mut awaited: Vec<Awaited> = Vec::new();
    let mut rest = text;
    loop {
        rest = rest.trim_start_matches([' ', '\t', '\r']);
        if let Some(after) = rest.strip_prefix("\\\n") {
            rest = after;
            continue;
        }
        if rest.is_empty() {
            return if awaited.is_empty() { Ok(found) } else { unfinished("here-document") };
        }
        if rest.starts_with('#') {
            rest = rest.find('\n').and_then(|end| rest.get(end..)).unwrap_or_default();
            continue;
        }
        if let Some(after) = rest.strip_prefix("<<") {
            let is_indented = after.starts_with('-');
            let after = after.trim_start_matches('-').trim_start_matches([' ', '\t']);
            let (delimiter, after) = word(after, 0)?;
            let is_plain = delimiter.iter().any(|part| matches!(part, Part::Text(_, true)));
            let end = literal(&delimiter);
            awaited.push(Awaited { at: found.len(), end, is_plain, is_indented });
            found.push(Token::Document(Vec::new()));
            rest = after;
            continue;
        }
        let operator =
            OPERATORS.iter().find_map(|operator| Some((*operator, rest.strip_prefix(operator)?)));
        if let Some((operator, after)) = operator {
            found.push(Token::Operator(operator));
            rest = after;
            if operator == "\n" {
                for document in awaited.drain(..) {
                    let (text, after) = document.read(rest)?;
                    if let Some(place) = found.get_mut(document.at) {
                        *place = Token::Document(text);
                    }
                    rest = after;
                }
            }
            continue;
        }
        let (word, after) = word(rest, 0)?;
        found.push(Token::Word(word));
        rest = after;
    }
}

/// A here-document whose text is still to come.
struct Awaited {
    at: usize,
    end: String,
    is_plain: bool,
    is_indented: bool,
}

impl Awaited {
    fn read<'a>(&self, text: &'a str) -> Result<(Word, &'a str), Fault> {
        let (mut body, mut rest) = (String::new(), text);
        loop {
            if rest.is_empty() {
                return unfinished("here-document");
            }
            let (line, after) = rest.split_once('\n').unwrap_or((rest, ""));
            let line = if self.is_indented { line.trim_start_matches('\t') } else { line };
            rest = after;
            if line == self.end {
                break;
            }
            body.push_str(line);
            body.push('\n');
        }
        let body = if self.is_plain { vec![Part::Text(body, true)] } else { quoted(&body, 0)? };
        Ok((body, rest))
    }
}

/// What a word is if nothing in it is replaced.
pub fn literal(word: &Word) -> String {
    let texts = word.iter().filter_map(|part| match part {
        Part::Text(text, _) => Some(text.as_str()),
        _ => None,
    });
    texts.collect()
}

/// Reads one word; returns what follows it.
fn word(text: &str, depth: usize) -> Result<(Word, &str), Fault> {
    let is_end = |c: char| " \t\r\n;|&<>()".contains(c);
    let (parts, rest) = parts(text, depth, &is_end)?;
    if rest.len() == text.len() {
        return Err(Fault::Wrong(format!("unexpected {:?}", text.chars().next().unwrap_or(' '))));
    }
    Ok((parts, rest))
}

/// Reads a text in which nothing ends a word, as within double quotes.
fn quoted(text: &str, depth: usize) -> Result<Word, Fault> {
    let (mut found, mut rest) = (Vec::new(), text);
    while let Some(first) = rest.chars().next() {
        rest = inner(rest, first, true, depth, &mut found)?;
    }
    Ok(found)
}

/// Reads parts until `is_end` says so of a character outside quotes.
fn parts<'a>(
    text: &'a str,
    depth: usize,
    is_end: &dyn Fn(char) -> bool,
) -> Result<(Word, &'a str), Fault> {
    if depth > DEPTH_MAX {
        return Err(Fault::Wrong("words are nested too deep".to_owned()));
    }
    let (mut found, mut rest, mut is_quoted) = (Vec::new(), text, false);
    while let Some(first) = rest.chars().next() {
        let after = rest.get(first.len_utf8()..).unwrap_or_default();
        rest = match first {
            '"' => {
                is_quoted = !is_quoted;
                found.push(Part::Text(String::new(), true));
                after
            }
            '\'' if !is_quoted => {
                let Some((text, after)) = after.split_once('\'') else {
                    return unfinished("quoted string");
                };
                found.push(Part::Text(text.to_owned(), true));
                after
            }
            c if !is_quoted && is_end(c) => break,
            _ => inner(rest, first, is_quoted, depth, &mut found)?,
        };
    }
    if is_quoted { unfinished("quoted string") } else { Ok((found, rest)) }
}

/// Reads what means the same in and out of double quotes, from `first` on; returns what follows.
fn inner<'a>(
    text: &'a str,
    first: char,
    is_quoted: bool,
    depth: usize,
    found: &mut Word,
) -> Result<&'a str, Fault> {
    let after = text.get(first.len_utf8()..).unwrap_or_default();
    match first {
        '\\' => {
            let Some(next) = after.chars().next() else { return unfinished("escape") };
            let rest = after.get(next.len_utf8()..).unwrap_or_default();
            if next != '\n' {
                let keeps = is_quoted && !matches!(next, '"' | '\\' | '$' | '`');
                let text = if keeps { format!("\\{next}") } else { next.to_string() };
                found.push(Part::Text(text, true));
            }
            Ok(rest)
        }
        '$' => {
            let (part, rest) = dollar(after, is_quoted, depth + 1)?;
            found.push(part);
            Ok(rest)
        }
        '`' => {
            let (command, rest) = backquoted(after)?;
            found.push(Part::Command(command, is_quoted));
            Ok(rest)
        }
        other => {
            match found.last_mut() {
                Some(Part::Text(text, quoted)) if *quoted == is_quoted => text.push(other),
                _ => found.push(Part::Text(other.to_string(), is_quoted)),
            }
            Ok(after)
        }
    }
}

/// What is between backquotes, without its escapes.
fn backquoted(text: &str) -> Result<(String, &str), Fault> {
    let (mut command, mut chars) = (String::new(), text.char_indices());
    while let Some((at, c)) = chars.next() {
        match c {
            '`' => return Ok((command, text.get(at + 1..).unwrap_or_default())),
            '\\' => match chars.next() {
                Some((_, next @ ('`' | '\\' | '$'))) => command.push(next),
                Some((_, next)) => command.extend(['\\', next]),
                None => break,
            },
            other => command.push(other),
        }
    }
    unfinished("backquote")
}

/// The text up to the `)` that closes it, and what follows.
fn closed(text: &str) -> Result<(&str, &str), Fault> {
    let (mut depth, mut chars) = (1_usize, text.char_indices());
    while let Some((at, c)) = chars.next() {
        match c {
            '\\' => drop(chars.next()),
            '\'' => drop(chars.by_ref().find(|(_, c)| *c == '\'')),
            '(' => depth += 1,
            ')' => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            let (inside, _) = text.split_at(at);
            return Ok((inside, text.get(at + 1..).unwrap_or_default()));
        }
    }
    unfinished("$(")
}

/// What a `$` stands for; `text` follows it.
fn dollar(text: &str, is_quoted: bool, depth: usize) -> Result<(Part, &str), Fault> {
    if depth > DEPTH_MAX {
        return Err(Fault::Wrong("words are nested too deep".to_owned()));
    }
    if let Some(inside) = text.strip_prefix('(') {
        let (inside, rest) = closed(inside)?;
        let expression = inside.strip_prefix('(').and_then(|inside| inside.strip_suffix(')'));
        return Ok(match expression {
            Some(expression) => (Part::Arithmetic(quoted(expression, depth)?, is_quoted), rest),
            None => (Part::Command(inside.to_owned(), is_quoted), rest),
        });
    }
    if let Some(inside) = text.strip_prefix('{') {
        return braced(inside, is_quoted, depth);
    }
    let special = text.chars().next().filter(|c| "?@*#$!-".contains(*c) || c.is_ascii_digit());
    let (name, rest) = match special {
        Some(_) => text.split_at(1),
        None => text.split_at(name_end(text)),
    };
    if name.is_empty() {
        return Ok((Part::Text("$".to_owned(), is_quoted), text));
    }
    Ok((Part::Variable { name: name.to_owned(), change: None, is_quoted }, rest))
}

/// Where the name at the beginning of a text ends.
pub fn name_end(text: &str) -> usize {
    text.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(text.len())
}

fn braced(text: &str, is_quoted: bool, depth: usize) -> Result<(Part, &str), Fault> {
    let variable = |name: &str, change| Part::Variable { name: name.to_owned(), change, is_quoted };
    if let Some((name, rest)) = text.strip_prefix('#').and_then(|rest| rest.split_once('}'))
        && !name.is_empty()
    {
        let change = Change { operator: "length", word: Vec::new() };
        return Ok((variable(name, Some(change)), rest));
    }
    let end = match name_end(text) {
        0 => usize::from(text.starts_with(['?', '@', '*', '#', '$', '!', '-'])),
        end => end,
    };
    let (name, rest) = text.split_at(end);
    if let Some(rest) = rest.strip_prefix('}')
        && !name.is_empty()
    {
        return Ok((variable(name, None), rest));
    }
    let change = CHANGES.iter().find_map(|change| Some((*change, rest.strip_prefix(change)?)));
    let Some((operator, rest)) = change.filter(|_| !name.is_empty()) else {
        return if rest.is_empty() {
            unfinished("${")
        } else {
            Err(Fault::Wrong(format!("bad substitution at {text:?}")))
        };
    };
    let (word, rest) = parts(rest, depth, &|c| c == '}')?;
    match rest.strip_prefix('}') {
        Some(rest) => Ok((variable(name, Some(Change { operator, word })), rest)),
        None => unfinished("${"),
    }
}
