//! The query string of a request. Shared with `hello-p3`.

/// Raw value of `name` in a query string.
pub fn parameter<'a>(query: &'a str, name: &str) -> Option<&'a str> {
    query
        .split('&')
        .filter_map(|pair| pair.split_once('='))
        .find(|(key, _)| *key == name)
        .map(|(_, value)| value)
}

/// Value of `name` as a number; a sentence for the client when it is missing or above `max`.
pub fn number(query: &str, name: &str, max: u64) -> Result<u64, String> {
    parameter(query, name)
        .and_then(|value| value.parse().ok())
        .filter(|value| *value <= max)
        .ok_or_else(|| format!("{name} must be a number up to {max}\n"))
}

/// `%41` becomes `A`; what is no escape stays as it is.
pub fn percent_decoded(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, tail)) = rest.split_first() {
        let escape =
            tail.split_at_checked(2).filter(|_| *first == b'%').and_then(|(digits, after)| {
                let digits = std::str::from_utf8(digits).ok()?;
                Some((u8::from_str_radix(digits, 16).ok()?, after))
            });
        let (byte, after) = escape.unwrap_or((*first, tail));
        bytes.push(byte);
        rest = after;
    }
    String::from_utf8_lossy(&bytes).into_owned()
}
