//! Splitting of option lists into items.

/// Item of an option list: `name` or `name=value`, without quotes and escaping backslashes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Item {
    /// Name of the option.
    pub(super) name: Vec<u8>,
    /// Value; `None` if there is no `=`.
    pub(super) value: Option<Vec<u8>>,
}

/// Splits a list at commas, except inside double quotes or after a backslash. Drops empty items.
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
            // A backslash at the end of the list is part of the value.
            b'\\' => item.push(bytes.next().unwrap_or(byte)),
            _ => item.push(byte),
        }
    }
    items.push(item);
    items.retain(|item| *item != Item::default());
    items
}

impl Item {
    /// Appends a byte to the value, or to the name if there is no value yet.
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
    fn items_end_at_commas_and_names_at_the_first_equals_sign() {
        let items = split(b",a,,b=1,c=x=y,d=,");
        let expected =
            [item("a", None), item("b", Some("1")), item("c", Some("x=y")), item("d", Some(""))];
        assert_eq!(items, expected);
    }

    #[test]
    fn quotes_and_backslashes_protect_commas_and_quotes() {
        assert_eq!(split(br#"a="1,2",b"#), [item("a", Some("1,2")), item("b", None)]);
        assert_eq!(split(br#"a=1\,2\"\\"#), [item("a", Some(r#"1,2"\"#))]);
        assert_eq!(split(br"a=1\"), [item("a", Some(r"1\"))]);
    }

    proptest! {
        #[test]
        fn a_value_of_any_bytes_can_be_escaped(
            value in proptest::collection::vec(any::<u8>(), 0..20)
        ) {
            let mut text = b"x,dir=".to_vec();
            text.extend(value.iter().flat_map(|&byte| [b'\\', byte]));
            text.extend(b",y");
            let expected = Item { name: b"dir".to_vec(), value: Some(value) };
            prop_assert_eq!(&split(&text)[1], &expected);
        }
    }
}
