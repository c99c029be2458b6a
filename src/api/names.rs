//! Names: RFC 1123, labels, generated names.

/// Longest DNS label.
pub const LABEL_LEN_MAX: usize = 63;
/// Longest DNS subdomain, and longest prefix of a label key.
pub const SUBDOMAIN_LEN_MAX: usize = 253;
/// Letters of a generated suffix: no vowels, so no words.
pub const SUFFIX_ALPHABET: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
/// Length of a generated suffix.
pub const SUFFIX_LEN: usize = 5;
/// Longest base that leaves room for a suffix.
const GENERATED_BASE_LEN_MAX: usize = LABEL_LEN_MAX - SUFFIX_LEN;

const LABEL_TEXT: &str = "a lowercase RFC 1123 label must consist of lower case alphanumeric \
    characters or '-', and must start and end with an alphanumeric character (e.g. 'my-name',  or \
    '123-abc', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')";
const SUBDOMAIN_TEXT: &str = "a lowercase RFC 1123 subdomain must consist of lower case \
    alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character \
    (e.g. 'example.com', regex used for validation is \
    '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')";
const DNS1035_TEXT: &str = "a DNS-1035 label must consist of lower case alphanumeric characters or \
    '-', start with an alphabetic character, and end with an alphanumeric character (e.g. \
    'my-name',  or 'abc-123', regex used for validation is '[a-z]([-a-z0-9]*[a-z0-9])?')";
const LABEL_VALUE_TEXT: &str = "a valid label must be an empty string or consist of alphanumeric \
    characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. \
    'MyValue',  or 'my_value',  or '12345', regex used for validation is \
    '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')";
const QUALIFIED_NAME_TEXT: &str = "name part must consist of alphanumeric characters, '-', '_' or \
    '.', and must start and end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or \
    '123-abc', regex used for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')";

/// Checks a DNS label such as a container's or a namespace's name.
///
/// # Errors
///
/// The rule that is broken, in Kubernetes' words.
pub fn check_dns1123_label(name: &str) -> Result<(), &'static str> {
    if name.len() > LABEL_LEN_MAX {
        return Err("must be no more than 63 bytes");
    }
    if is_label(name) { Ok(()) } else { Err(LABEL_TEXT) }
}

/// Checks a DNS subdomain such as the name of most objects.
///
/// # Errors
///
/// The rule that is broken, in Kubernetes' words.
pub fn check_dns1123_subdomain(name: &str) -> Result<(), &'static str> {
    if name.len() > SUBDOMAIN_LEN_MAX {
        return Err("must be no more than 253 bytes");
    }
    if name.split('.').all(is_label) { Ok(()) } else { Err(SUBDOMAIN_TEXT) }
}

/// Checks a DNS label that starts with a letter, such as a Service's name.
///
/// # Errors
///
/// The rule that is broken, in Kubernetes' words.
pub fn check_dns1035_label(name: &str) -> Result<(), &'static str> {
    if name.len() > LABEL_LEN_MAX {
        return Err("must be no more than 63 bytes");
    }
    let starts_well = name.bytes().next().is_some_and(|c| c.is_ascii_lowercase());
    if starts_well && is_label(name) { Ok(()) } else { Err(DNS1035_TEXT) }
}

/// Checks the key of a label or annotation: `[prefix/]name`.
///
/// # Errors
///
/// The rule that is broken, in Kubernetes' words.
pub fn check_qualified_name(key: &str) -> Result<(), &'static str> {
    let name = match key.split_once('/') {
        None => key,
        Some(("", _)) => return Err("prefix part must be non-empty"),
        Some((_, name)) if name.contains('/') => {
            return Err("a qualified name must consist of alphanumeric characters, '-', '_' or \
                '.', with an optional DNS subdomain prefix and '/' (e.g. 'example.com/MyName')");
        }
        Some((prefix, name)) => {
            check_dns1123_subdomain(prefix)?;
            name
        }
    };
    if name.is_empty() {
        return Err("name part must be non-empty");
    }
    if name.len() > LABEL_LEN_MAX {
        return Err("name part must be no more than 63 bytes");
    }
    if is_name_part(name) { Ok(()) } else { Err(QUALIFIED_NAME_TEXT) }
}

/// Checks the value of a label.
///
/// # Errors
///
/// The rule that is broken, in Kubernetes' words.
pub fn check_label_value(value: &str) -> Result<(), &'static str> {
    if value.len() > LABEL_LEN_MAX {
        return Err("must be no more than 63 bytes");
    }
    if value.is_empty() || is_name_part(value) { Ok(()) } else { Err(LABEL_VALUE_TEXT) }
}

/// Checks the key of a ConfigMap or Secret.
///
/// # Errors
///
/// The rule that is broken, in Kubernetes' words.
pub fn check_config_key(key: &str) -> Result<(), &'static str> {
    if key.len() > SUBDOMAIN_LEN_MAX {
        return Err("must be no more than 253 bytes");
    }
    if key.is_empty() || !key.bytes().all(|c| c.is_ascii_alphanumeric() || b"-._".contains(&c)) {
        return Err("a valid config key must consist of alphanumeric characters, '-', '_' or '.' \
            (e.g. 'key.name',  or 'KEY_NAME',  or 'key-name', regex used for validation is \
            '[-._a-zA-Z0-9]+')");
    }
    if key == "." || key == ".." || key.starts_with("..") {
        return Err("must not be '.', be '..' or start with '..'");
    }
    Ok(())
}

/// Checks the name of an environment variable: printable ASCII without `=`.
///
/// # Errors
///
/// The rule that is broken, in Kubernetes' words.
pub fn check_env_name(name: &str) -> Result<(), &'static str> {
    if !name.is_empty() && name.bytes().all(|c| (b' '..=b'~').contains(&c) && c != b'=') {
        return Ok(());
    }
    Err("a valid environment variable name must consist only of printable ASCII characters other \
        than '='")
}

/// Checks the name of a port: a short DNS label with at least one letter.
///
/// # Errors
///
/// The rule that is broken, in Kubernetes' words.
pub fn check_port_name(name: &str) -> Result<(), &'static str> {
    if name.len() > 15 {
        return Err("must be no more than 15 characters");
    }
    if !name.bytes().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'-') {
        return Err("must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-)");
    }
    if !name.bytes().any(|c| c.is_ascii_lowercase()) {
        return Err("must contain at least one letter (a-z)");
    }
    if name.contains("--") {
        return Err("must not contain consecutive hyphens");
    }
    if name.starts_with('-') || name.ends_with('-') {
        return Err("must not begin or end with a hyphen");
    }
    Ok(())
}

/// `base` cut to make room, with `suffix` behind it.
///
/// The suffix has [`SUFFIX_LEN`] letters of [`SUFFIX_ALPHABET`]; on a clash try another, up to 8
/// times.
#[must_use]
pub fn generate_name(base: &str, suffix: &str) -> String {
    let mut end = base.len().min(GENERATED_BASE_LEN_MAX);
    while !base.is_char_boundary(end) {
        end -= 1;
    }
    format!("{}{suffix}", base.get(..end).unwrap_or(""))
}

fn is_label(name: &str) -> bool {
    let is_inner = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit();
    !name.is_empty()
        && name.len() <= SUBDOMAIN_LEN_MAX
        && name.bytes().all(|c| is_inner(c) || c == b'-')
        && !name.starts_with('-')
        && !name.ends_with('-')
}

fn is_name_part(name: &str) -> bool {
    let is_edge = |c: Option<u8>| c.is_some_and(|c| c.is_ascii_alphanumeric());
    name.bytes().all(|c| c.is_ascii_alphanumeric() || b"-_.".contains(&c))
        && is_edge(name.bytes().next())
        && is_edge(name.bytes().last())
}
