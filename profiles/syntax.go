package profiles

import (
	"fmt"
	"strings"

	"github.com/BurntSushi/toml"
)

// syntaxHints are what to do about a parser's message that begins with prefix
// and contains part; the first row that fits counts.
var syntaxHints = []struct{ prefix, part, hint string }{
	{"", `'\u3000'`, "an odd space stands here: type a plain one"},
	{"", `'\u00a0'`, "an odd space stands here: type a plain one"},
	{`expected value but found '“'`, "", `use the plain quote ", not a typographic one`},
	{`expected value but found '”'`, "", `use the plain quote ", not a typographic one`},
	{`expected value but found '＂'`, "", `use the plain quote ", not the full-width one`},
	{`expected value but found '\n'`, "", "a value stands on the line of its key"},
	{`expected value but found`, "", `text stands in quotes: key = "value"; numbers, true and false stand alone`},
	{`Invalid integer`, "leading zero", "write it without leading zeroes; 0x begins a hexadecimal number"},
	{`expected '.' or ']' to end table name, but got '\n'`, "", "a header ends with ]: [uplink.NAME]"},
	{`expected '.' or ']' to end table name, but got '\r'`, "", "a header ends with ]: [uplink.NAME]"},
	{`expected '.' or ']' to end table name`, "", "table names are joined by a dot, and a name with characters outside A-Z a-z 0-9 _ - " +
		`needs quotes: [uplink."名"]`},
	{`expected '.' or '=', but got '\n'`, "", "a line is a [table], a key = value, or a # comment"},
	{`expected '.' or '='`, "", `a line reads key = value, and a key with characters outside A-Z a-z 0-9 _ - needs quotes`},
	{`unexpected EOF; expected '"'`, "", `the closing " is missing`},
	{`unexpected EOF; expected "'"`, "", "the closing ' is missing"},
	{`unexpected EOF; expected '"""'`, "", `the closing """ is missing`},
	{`unexpected EOF; expected "'''"`, "", "the closing ''' is missing"},
	{`unexpected EOF`, "", "the end of a value is missing: a quote, a bracket, or all of it"},
	{`strings cannot contain newlines`, "", "the closing quote is missing on this line"},
	{`expected a comma (',') or array terminator`, "", "elements of a list are separated by commas, and the list ends with ]"},
	{`expected a comma or an inline table terminator`, "", "pairs in { } are separated by commas, and end with }"},
	{`expected a top-level item to end`, "", "one key = value a line"},
	{`invalid escape`, "", `write \\ for a backslash, or put the text into single quotes`},
	{`TOML files cannot contain control characters`, "", "delete the invisible character here"},
	{`files cannot contain NULL bytes`, "", "save the file as UTF-8"},
	{"", "is out of range for int64", "no key of sisod takes a number so large"},
	{"Key '", "already been defined", "a key or a [table] may stand once; join the two, or for a list of tables write [[name]]"},
	{"Key '", "cannot be used as an array", "[name] and [[name]] cannot both be used for one name"},
	{"unexpected '=': key name appears blank", "", "a key stands before the ="},
	{"unexpected comma", "", "two commas, or a comma before the first element"},
}

// syntax turns a parser's error into a complaint.
func (d *document) syntax(e toml.ParseError) {
	text, hint := e.Message, ""
	for _, h := range syntaxHints {
		if strings.HasPrefix(text, h.prefix) && strings.Contains(text, h.part) {
			hint = h.hint
			break
		}
	}
	text = strings.TrimSuffix(strings.ReplaceAll(text, "Key '", "key '"), ".")
	text = strings.Replace(text, "unexpected EOF", "unexpected end of file", 1)
	text = strings.ReplaceAll(text, "newline, comment, or EOF", "line end or comment")
	text = strings.ReplaceAll(text, "Invalid ", "invalid ")
	if odd, ok := strings.CutPrefix(text, "expected a top-level item to end with a line end or comment, but got "); ok {
		text = "expected the line to end here, not " + strings.TrimSuffix(odd, " instead")
	}
	text = strings.NewReplacer(`'\n'`, "the end of the line", `'\r'`, "the end of the line").Replace(text)
	start := min(max(e.Position.Start, 0), len(d.text))
	end := min(start+max(e.Position.Len, 1), len(d.text))
	for end-start > 1 && (d.text[start] == ' ' || d.text[start] == '\t') {
		start++
	}
	if strings.HasPrefix(text, `expected value but found "`) || strings.HasPrefix(text, "invalid float") {
		word, _, _ := strings.Cut(d.text[start:], "\n")
		if i := strings.IndexAny(word, " \t\r,]}#\"'"); i >= 0 {
			word = word[:i]
		}
		end = start + len(word)
		text, hint = word+" is not a value", unquotedHint(word)
	}
	// The parser points at the line end that it did not expect, or behind it;
	// the line to mend is the one before.
	for start > 0 && start == len(d.text) && d.text[start-1] == '\n' {
		start--
	}
	d.complain(span{start, end}, text, hint)
}

// unquotedHint says how to write a word that stands where a value should.
func unquotedHint(word string) string {
	switch lower := strings.ToLower(word); {
	case lower == "true" || lower == "false":
		return "write it small: " + lower
	case lower == "yes" || lower == "on":
		return "write true"
	case lower == "no" || lower == "off":
		return fmt.Sprintf("write false, or, as text, %q", lower)
	}
	return fmt.Sprintf("text, addresses among it, stands in quotes: %q. Numbers, true and false stand alone", word)
}
