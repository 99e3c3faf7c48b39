//! What the host gives in pages, one by one: rows and entries.

use crate::{Error, InspectError, host};

/// Rows asked for at a time; the host may give fewer.
const PAGE_ROWS: u32 = 1000;

/// Entries asked for at a time; the host may give fewer.
const PAGE_ENTRIES: u32 = 1000;

/// Something that is asked for page after page; an empty one is the end.
pub(crate) trait Source {
    type Item;
    fn page(&self) -> Result<Vec<Self::Item>, InspectError>;
}

impl Source for host::Rows {
    type Item = Vec<crate::db::Cell>;
    fn page(&self) -> Result<Vec<Self::Item>, InspectError> {
        self.next(PAGE_ROWS)
    }
}

impl Source for host::Listing {
    type Item = crate::volume::Entry;
    fn page(&self) -> Result<Vec<Self::Item>, InspectError> {
        self.next(PAGE_ENTRIES)
    }
}

/// What it gives, one after the other. After an error comes nothing more.
pub(crate) struct Paged<S: Source> {
    source: S,
    /// What was asked, for errors.
    pub about: String,
    page: std::vec::IntoIter<S::Item>,
    ended: bool,
}

impl<S: Source> Paged<S> {
    pub fn new(source: S, about: String) -> Self {
        Paged {
            source,
            about,
            page: Vec::new().into_iter(),
            ended: false,
        }
    }
}

impl<S: Source> Iterator for Paged<S> {
    type Item = Result<S::Item, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some(item) = self.page.next() {
                return Some(Ok(item));
            }
            if self.ended {
                return None;
            }
            match self.source.page() {
                Ok(page) => {
                    self.ended = page.is_empty();
                    self.page = page.into_iter();
                }
                Err(e) => {
                    self.ended = true;
                    let text = format!("{}: {}: {}", self.about, e.case(), e.text());
                    return Some(Err(Error::Inspect(text)));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::RefCell;

    struct Pages(RefCell<Vec<Result<Vec<u8>, InspectError>>>);

    impl Source for Pages {
        type Item = u8;
        fn page(&self) -> Result<Vec<u8>, InspectError> {
            self.0.borrow_mut().remove(0)
        }
    }

    fn all(pages: Vec<Result<Vec<u8>, InspectError>>) -> Vec<Result<u8, String>> {
        let paged = Paged::new(Pages(RefCell::new(pages)), "here".to_owned());
        paged.map(|item| item.map_err(|e| e.to_string())).collect()
    }

    #[test]
    fn pages_follow_each_other_to_the_empty_one() {
        // Nobody asks again after it.
        let given = all(vec![Ok(vec![1, 2]), Ok(vec![3]), Ok(vec![])]);
        assert_eq!(given, [Ok(1), Ok(2), Ok(3)]);
        assert_eq!(all(vec![Ok(vec![])]), []);
    }

    #[test]
    fn an_error_is_said_once_and_is_the_end() {
        let given = all(vec![
            Ok(vec![1]),
            Err(InspectError::Limit("too much".into())),
            Ok(vec![2]),
        ]);
        assert_eq!(given.len(), 2);
        assert_eq!(given[0], Ok(1));
        let said = given[1].clone().unwrap_err();
        assert!(said.contains("here: ") && said.contains("too much"), "{said}");
    }
}
