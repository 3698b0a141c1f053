//! Stop strings: texts that end a generation.

/// Passes text on until a stop string begins. A part that may begin a stop string is kept back until more text decides.
#[derive(Debug)]
pub struct StopStrings<'a> {
    stops: &'a [String],
    /// Text that is not passed on yet.
    kept: String,
    is_done: bool,
}

impl<'a> StopStrings<'a> {
    pub fn new(stops: &'a [String]) -> Self {
        Self { stops, kept: String::new(), is_done: false }
    }

    /// Whether a stop string came.
    pub fn is_done(&self) -> bool {
        self.is_done
    }

    /// Takes a piece of text, and returns the text that may be passed on.
    pub fn push(&mut self, piece: &str) -> String {
        if self.is_done {
            return String::new();
        }
        self.kept.push_str(piece);
        if let Some(at) = self.stops.iter().filter_map(|stop| self.kept.find(stop.as_str())).min() {
            self.is_done = true;
            self.kept.truncate(at);
            return std::mem::take(&mut self.kept);
        }
        // The first place from which on the text is the beginning of a stop string.
        let begins = |at: &usize| self.stops.iter().any(|stop| stop.starts_with(&self.kept[*at..]));
        let at = self.kept.char_indices().map(|(at, _)| at).find(begins).unwrap_or(self.kept.len());
        let rest = self.kept.split_off(at);
        std::mem::replace(&mut self.kept, rest)
    }

    /// Returns the text that was kept back, at the end of the generation.
    pub fn finish(&mut self) -> String {
        std::mem::take(&mut self.kept)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn passed(stops: &[&str], pieces: &[&str]) -> (Vec<String>, String, bool) {
        let stops: Vec<String> = stops.iter().map(|stop| (*stop).to_owned()).collect();
        let mut strings = StopStrings::new(&stops);
        let passed = pieces.iter().map(|piece| strings.push(piece)).collect();
        let done = strings.is_done();
        (passed, strings.finish(), done)
    }

    #[test]
    fn text_before_the_first_stop_text_is_passed_on() {
        let all = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>();
        assert_eq!(passed(&[], &["a", "b"]), (all(&["a", "b"]), String::new(), false));
        assert_eq!(passed(&["END"], &["one E", "N", "Dx", "y"]), (all(&["one ", "", "", ""]), String::new(), true));
        // What looked like a stop string is not lost.
        assert_eq!(passed(&["END"], &["aEN", "ough"]), (all(&["a", "ENough"]), String::new(), false));
        assert_eq!(passed(&["END"], &["aEEN"]), (all(&["aE"]), "EN".to_owned(), false));
        // The earliest of several ends the text; characters stay whole.
        assert_eq!(passed(&["zz", "é!"], &["aé", "!zz"]), (all(&["a", ""]), String::new(), true));
    }
}
