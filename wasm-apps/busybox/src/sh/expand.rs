//! Words become fields (POSIX shell, 2.6).

use crate::cx::Cx;
use crate::sh::glob::{files, fits, is_pattern, plain, quoted};
use crate::sh::lex::{Change, Part, Word};
use crate::sh::{Shell, arithmetic};

/// How deep values may be made of values.
const DEPTH_MAX: usize = 32;

/// Fields that are being made. They are kept as patterns, in which what was quoted stands for itself.
#[derive(Default)]
struct Fields {
    done: Vec<String>,
    current: Option<String>,
    /// Characters between fields.
    marks: String,
}

impl Fields {
    fn push(&mut self, pattern: &str) {
        self.current.get_or_insert_default().push_str(pattern);
    }

    fn end(&mut self) {
        self.done.extend(self.current.take());
    }

    /// Adds a value that nobody quoted: it is split at what IFS says (2.6.5).
    fn split(&mut self, text: &str) {
        let marks = self.marks.clone();
        let is_mark = |c: char| marks.contains(c);
        let is_blank = |c: char| is_mark(c) && c.is_whitespace();
        let mut rest = text;
        loop {
            let after = rest.trim_start_matches(is_blank);
            if after.len() < rest.len() {
                self.end();
            }
            if after.is_empty() {
                return;
            }
            let (piece, after) = after.split_at(after.find(is_mark).unwrap_or(after.len()));
            if !piece.is_empty() {
                self.push(&piece.replace('\\', "\\\\"));
            }
            let behind = after.trim_start_matches(is_blank);
            rest = match behind.chars().next().filter(|c| is_mark(*c)) {
                Some(mark) => {
                    // What is no blank ends a field even if that is empty.
                    self.push("");
                    self.end();
                    behind.get(mark.len_utf8()..).unwrap_or_default()
                }
                None => after,
            };
        }
    }
}

impl Shell {
    /// The fields of a word: replaced, split, and matched against files.
    pub fn fields(&mut self, cx: &mut Cx, word: &Word) -> Vec<String> {
        let is_empty = |part: &Part| matches!(part, Part::Text(text, true) if text.is_empty());
        let is_all =
            |part: &Part| matches!(part, Part::Variable { name, change: None, .. } if name == "@");
        if self.parameters.len() <= 1
            && word.iter().any(is_all)
            && word.iter().all(|part| is_empty(part) || is_all(part))
        {
            return Vec::new();
        }
        let marks = cx.env.get("IFS").cloned().unwrap_or_else(|| " \t\n".to_owned());
        let mut fields = Fields { marks, ..Fields::default() };
        self.expand(cx, word, &mut fields);
        fields.end();
        let found = fields.done.into_iter().flat_map(|pattern| {
            let files = if is_pattern(&pattern) { files(cx, &pattern) } else { Vec::new() };
            if files.is_empty() { vec![plain(&pattern)] } else { files }
        });
        found.collect()
    }

    /// A word as one text, neither split nor matched.
    pub fn text(&mut self, cx: &mut Cx, word: &Word) -> String {
        plain(&self.pattern(cx, word))
    }

    /// A word as one pattern.
    pub fn pattern(&mut self, cx: &mut Cx, word: &Word) -> String {
        let mut pattern = String::new();
        for part in word {
            match part {
                Part::Text(text, false) => pattern.push_str(text),
                Part::Text(text, true) => pattern.push_str(&quoted(text)),
                _ => {
                    let (text, is_quoted) = self.value(cx, part);
                    pattern.push_str(&if is_quoted {
                        quoted(&text)
                    } else {
                        text.replace('\\', "\\\\")
                    });
                }
            }
        }
        pattern
    }

    fn expand(&mut self, cx: &mut Cx, word: &Word, fields: &mut Fields) {
        for (at, part) in word.iter().enumerate() {
            match part {
                Part::Text(text, false) if at == 0 && (text == "~" || text.starts_with("~/")) => {
                    let home = cx.env.get("HOME").cloned().unwrap_or_default();
                    fields.push(&quoted(&home));
                    fields.push(text.get(1..).unwrap_or_default());
                }
                // Within `${..}` only.
                Part::Text(text, false) if text.contains(char::is_whitespace) => fields.split(text),
                Part::Text(text, false) => fields.push(text),
                Part::Text(text, true) => fields.push(&quoted(text)),
                Part::Variable { name, change: None, is_quoted: true } if name == "@" => {
                    // Each parameter is a field of its own, whatever is in it.
                    let parameters = self.parameters.get(1..).unwrap_or_default().to_vec();
                    for (at, parameter) in parameters.iter().enumerate() {
                        if at > 0 {
                            fields.end();
                        }
                        fields.push(&quoted(parameter));
                    }
                }
                Part::Variable { name, change: Some(change), is_quoted: false }
                    if matches!(change.operator, "-" | ":-" | "+" | ":+") =>
                {
                    // What stands in the place of the value is split by its own quotes.
                    match self.replacement(cx, name, change) {
                        Some(word) => self.expand(cx, &word, fields),
                        None => {
                            let value = self.variable(cx, name).unwrap_or_default();
                            fields.split(&value);
                        }
                    }
                }
                _ => {
                    let (text, is_quoted) = self.value(cx, part);
                    if is_quoted { fields.push(&quoted(&text)) } else { fields.split(&text) }
                }
            }
        }
    }

    /// What a part stands for, and whether it was quoted.
    fn value(&mut self, cx: &mut Cx, part: &Part) -> (String, bool) {
        if self.depth >= DEPTH_MAX {
            self.stop(cx, "values are nested too deep");
            return (String::new(), true);
        }
        self.depth += 1;
        let value = match part {
            Part::Text(text, is_quoted) => (text.clone(), *is_quoted),
            Part::Command(command, is_quoted) => (self.output(cx, command), *is_quoted),
            Part::Arithmetic(word, is_quoted) => {
                let text = self.text(cx, word);
                match arithmetic::evaluate(&text, &mut cx.env) {
                    Ok(value) => (value.to_string(), *is_quoted),
                    Err(why) => {
                        self.stop(cx, &why);
                        (String::new(), *is_quoted)
                    }
                }
            }
            Part::Variable { name, change, is_quoted } => {
                let text = match change {
                    Some(change) => self.changed(cx, name, change),
                    None => self.known(cx, name),
                };
                (text, *is_quoted)
            }
        };
        self.depth -= 1;
        value
    }

    /// A variable's value, or a complaint after `set -u`.
    fn known(&mut self, cx: &mut Cx, name: &str) -> String {
        let value = self.variable(cx, name);
        if value.is_none() && self.options.no_unset && !matches!(name, "@" | "*") {
            self.stop(cx, &format!("{name}: parameter not set"));
        }
        value.unwrap_or_default()
    }

    /// The word that stands in the place of a value.
    fn replacement(&self, cx: &Cx, name: &str, change: &Change) -> Option<Word> {
        let value = self.variable(cx, name);
        let is_there = match change.operator.starts_with(':') {
            true => value.is_some_and(|value| !value.is_empty()),
            false => value.is_some(),
        };
        let is_wanted = change.operator.ends_with('+') == is_there;
        // `+` of what is not there is nothing.
        match (change.operator.ends_with('+'), is_wanted) {
            (true, false) => Some(Vec::new()),
            (_, true) => Some(change.word.clone()),
            _ => None,
        }
    }

    fn changed(&mut self, cx: &mut Cx, name: &str, change: &Change) -> String {
        let value = self.variable(cx, name);
        let is_missing = match change.operator.starts_with(':') {
            true => value.as_ref().is_none_or(String::is_empty),
            false => value.is_none(),
        };
        match change.operator {
            "length" => self.known(cx, name).chars().count().to_string(),
            ":-" | "-" if is_missing => self.text(cx, &change.word),
            ":+" | "+" => {
                if is_missing {
                    String::new()
                } else {
                    self.text(cx, &change.word)
                }
            }
            ":=" | "=" if is_missing => {
                let text = self.text(cx, &change.word);
                cx.env.insert(name.to_owned(), text.clone());
                text
            }
            ":?" | "?" if is_missing => {
                let why = self.text(cx, &change.word);
                let why = if why.is_empty() { "parameter not set".to_owned() } else { why };
                self.stop(cx, &format!("{name}: {why}"));
                String::new()
            }
            "#" | "##" | "%" | "%%" => {
                let (value, pattern) = (value.unwrap_or_default(), self.pattern(cx, &change.word));
                trimmed(&value, &pattern, change.operator).to_owned()
            }
            _ => value.unwrap_or_default(),
        }
    }

    /// The value of a variable or parameter.
    pub fn variable(&self, cx: &Cx, name: &str) -> Option<String> {
        match name {
            "?" => Some(self.last.to_string()),
            "#" => Some(self.parameters.len().saturating_sub(1).to_string()),
            "@" | "*" => {
                let all = self.parameters.get(1..).unwrap_or_default();
                (!all.is_empty()).then(|| all.join(" "))
            }
            "$" => Some("1".to_owned()),
            "-" | "!" => Some(String::new()),
            _ => match name.parse::<usize>() {
                Ok(at) => self.parameters.get(at).cloned(),
                Err(_) => cx.env.get(name).cloned(),
            },
        }
    }
}

/// A value without what fits at its beginning (`#`) or end (`%`): as little as fits, doubled as much.
fn trimmed<'a>(value: &'a str, pattern: &str, operator: &str) -> &'a str {
    let mut cuts: Vec<usize> =
        value.char_indices().map(|(at, _)| at).chain([value.len()]).collect();
    if matches!(operator, "##" | "%") {
        cuts.reverse();
    }
    for cut in cuts {
        let (head, tail) = value.split_at(cut);
        let (part, rest) = if operator.starts_with('#') { (head, tail) } else { (tail, head) };
        if fits(pattern, part) {
            return rest;
        }
    }
    value
}
