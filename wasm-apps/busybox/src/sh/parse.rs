//! Reads a text into words and operators, and refuses what this shell does not have.

/// A piece of a line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Token {
    /// A word in parts.
    Word(Vec<Part>),
    /// `&&`, `||`, `;`, `|`, `!`, or a redirection.
    Operator(&'static str),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Part {
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
pub fn check(tokens: &[Token]) -> Result<(), String> {
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

pub fn tokens(text: &str) -> Result<Vec<Token>, String> {
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
