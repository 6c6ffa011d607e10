//! Splits an option list into its items.

/// One item of a list: `name` or `name=value`, with quotes and backslashes removed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Item {
    pub(super) name: Vec<u8>,
    /// Value; `None` without `=`.
    pub(super) value: Option<Vec<u8>>,
}

/// Splits at commas, except inside double quotes or after a backslash. Drops empty items.
pub(super) fn split(text: &[u8]) -> Vec<Item> {
    let mut items = Vec::new();
    let mut item = Item::default();
    let mut quoted = false;
    let mut bytes = text.iter().copied();
    while let Some(byte) = bytes.next() {
        match byte {
            b'"' => quoted = !quoted,
            b',' if !quoted => items.push(std::mem::take(&mut item)),
            b'=' if item.value.is_none() => item.value = Some(Vec::new()),
            // A backslash at the very end stands for itself.
            b'\\' => item.push(bytes.next().unwrap_or(byte)),
            _ => item.push(byte),
        }
    }
    items.push(item);
    items.retain(|item| *item != Item::default());
    items
}

impl Item {
    fn push(&mut self, byte: u8) {
        self.value.as_mut().unwrap_or(&mut self.name).push(byte);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn item(name: &str, value: Option<&str>) -> Item {
        Item { name: name.into(), value: value.map(Into::into) }
    }

    #[test]
    fn commas_separate_and_the_first_equals_sign_divides() {
        let items = split(b",a,,b=1,c=x=y,d=,");
        let expected =
            [item("a", None), item("b", Some("1")), item("c", Some("x=y")), item("d", Some(""))];
        assert_eq!(items, expected);
    }

    #[test]
    fn quotes_and_backslashes_protect() {
        assert_eq!(split(br#"a="1,2",b"#), [item("a", Some("1,2")), item("b", None)]);
        assert_eq!(split(br#"a=1\,2\"\\"#), [item("a", Some(r#"1,2"\"#))]);
        assert_eq!(split(br"a=1\"), [item("a", Some(r"1\"))]);
    }

    proptest! {
        #[test]
        fn a_protected_value_of_any_bytes_is_kept(value in proptest::collection::vec(any::<u8>(), 0..20)) {
            let mut text = b"x,dir=".to_vec();
            text.extend(value.iter().flat_map(|&byte| [b'\\', byte]));
            text.extend(b",y");
            let expected = Item { name: b"dir".to_vec(), value: Some(value) };
            prop_assert_eq!(&split(&text)[1], &expected);
        }
    }
}
