//! What Go's `json.Decoder` says of a request body: the first value in it, or the decoder's own words about what is
//! wrong with it. The rest of the stand-in needs only strings out of an object, so nothing else is decoded.

use serde_json::Value;

/// The string fields of an object, as Go decodes it into a struct that has them: names match in any case, what is
/// missing or null is empty, and other fields are passed over.
pub fn fields(body: &[u8], kind: &str, names: &[(&str, &str)]) -> Result<Vec<String>, String> {
    let text = String::from_utf8_lossy(body);
    let end = Scanner { text: &text, at: 0 }.document()?;
    let value: Value = serde_json::from_str(&text[..end]).map_err(|error| error.to_string())?;
    let mut found = vec![String::new(); names.len()];
    let object = match &value {
        Value::Null => return Ok(found),
        Value::Object(object) => object,
        other => return Err(format!("json: cannot unmarshal {} into Go value of type types.{kind}", noun(other))),
    };
    for (key, value) in object {
        let Some(at) = names.iter().position(|(name, _)| name.eq_ignore_ascii_case(key)) else { continue };
        let (name, go_type) = names[at];
        match value {
            Value::String(text) => found[at].clone_from(text),
            Value::Null => {}
            other => {
                let noun = noun(other);
                return Err(format!(
                    "json: cannot unmarshal {noun} into Go struct field {kind}.{name} of type {go_type}"
                ));
            }
        }
    }
    Ok(found)
}

fn noun(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "bool",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

/// Finds the end of the first value, or says what is wrong as Go's scanner does.
struct Scanner<'a> {
    text: &'a str,
    at: usize,
}

const DEPTH_MAX: usize = 100;

impl Scanner<'_> {
    fn document(mut self) -> Result<usize, String> {
        self.space();
        if self.at == self.text.len() {
            return Err("EOF".into());
        }
        self.value(0)?;
        Ok(self.at)
    }

    fn peek(&self) -> Result<char, String> {
        self.text[self.at..].chars().next().ok_or_else(|| "unexpected EOF".into())
    }

    fn next(&mut self) -> Result<char, String> {
        let c = self.peek()?;
        self.at += c.len_utf8();
        Ok(c)
    }

    fn space(&mut self) {
        while self.text[self.at..].starts_with([' ', '\t', '\r', '\n']) {
            self.at += 1;
        }
    }

    /// The next character that is no white space, which has to be there.
    fn significant(&mut self) -> Result<char, String> {
        self.space();
        self.peek()
    }

    fn value(&mut self, depth: usize) -> Result<(), String> {
        match self.significant()? {
            _ if depth > DEPTH_MAX => Err("exceeded max depth".into()),
            '{' => self.object(depth),
            '[' => self.array(depth),
            '"' => self.string(),
            '-' | '0'..='9' => self.number(),
            't' => self.literal("true"),
            'f' => self.literal("false"),
            'n' => self.literal("null"),
            c => Err(invalid(c, "looking for beginning of value")),
        }
    }

    fn object(&mut self, depth: usize) -> Result<(), String> {
        self.at += 1;
        if self.significant()? == '}' {
            self.at += 1;
            return Ok(());
        }
        loop {
            match self.significant()? {
                '"' => self.string()?,
                c => return Err(invalid(c, "looking for beginning of object key string")),
            }
            match self.significant()? {
                ':' => self.at += 1,
                c => return Err(invalid(c, "after object key")),
            }
            self.value(depth + 1)?;
            self.space();
            match self.next()? {
                ',' => {}
                '}' => return Ok(()),
                c => return Err(invalid(c, "after object key:value pair")),
            }
        }
    }

    fn array(&mut self, depth: usize) -> Result<(), String> {
        self.at += 1;
        if self.significant()? == ']' {
            self.at += 1;
            return Ok(());
        }
        loop {
            self.value(depth + 1)?;
            self.space();
            match self.next()? {
                ',' => {}
                ']' => return Ok(()),
                c => return Err(invalid(c, "after array element")),
            }
        }
    }

    fn string(&mut self) -> Result<(), String> {
        self.at += 1;
        loop {
            match self.next()? {
                '"' => return Ok(()),
                '\\' => match self.next()? {
                    'b' | 'f' | 'n' | 'r' | 't' | '\\' | '/' | '"' => {}
                    'u' => {
                        for _ in 0..4 {
                            match self.next()? {
                                c if c.is_ascii_hexdigit() => {}
                                c => return Err(invalid(c, "in \\u hexadecimal character escape")),
                            }
                        }
                    }
                    c => return Err(invalid(c, "in string escape code")),
                },
                c if c < ' ' => return Err(invalid(c, "in string literal")),
                _ => {}
            }
        }
    }

    fn number(&mut self) -> Result<(), String> {
        if self.peek()? == '-' {
            self.at += 1;
        }
        match self.next()? {
            '0' => {}
            '1'..='9' => self.digits(),
            c => return Err(invalid(c, "in numeric literal")),
        }
        if self.text[self.at..].starts_with('.') {
            self.at += 1;
            match self.next()? {
                '0'..='9' => self.digits(),
                c => return Err(invalid(c, "after decimal point in numeric literal")),
            }
        }
        if self.text[self.at..].starts_with(['e', 'E']) {
            self.at += 1;
            if matches!(self.peek()?, '+' | '-') {
                self.at += 1;
            }
            match self.next()? {
                '0'..='9' => self.digits(),
                c => return Err(invalid(c, "in exponent of numeric literal")),
            }
        }
        Ok(())
    }

    fn digits(&mut self) {
        while self.text[self.at..].starts_with(|c: char| c.is_ascii_digit()) {
            self.at += 1;
        }
    }

    fn literal(&mut self, name: &str) -> Result<(), String> {
        for expected in name.chars() {
            match self.next()? {
                c if c == expected => {}
                c => return Err(invalid(c, &format!("in literal {name} (expecting '{expected}')"))),
            }
        }
        Ok(())
    }
}

fn invalid(c: char, place: &str) -> String {
    let shown = match c {
        '\'' => "\\'".to_owned(),
        '"' => "\"".to_owned(),
        '\\' => "\\\\".to_owned(),
        '\n' => "\\n".to_owned(),
        '\r' => "\\r".to_owned(),
        '\t' => "\\t".to_owned(),
        c if c < ' ' => format!("\\x{:02x}", u32::from(c)),
        c => c.to_string(),
    };
    format!("invalid character '{shown}' {place}")
}
