package explain

import (
	"encoding/json"
	"regexp"
	"slices"
	"strings"
)

// number is text that begins with a digit and that YAML would read as something else
// than text.
var number = regexp.MustCompile(`^([0-9.]+([eE][0-9]+)?|0x[0-9A-Fa-f]+|0o[0-7]+|[0-9]{4}-[0-9]{2}-[0-9]{2})$`)

// isPlain reports whether YAML reads a text as text without quotes.
func isPlain(text []byte) bool {
	if len(text) == 0 || !isLetter(text[0]) && !isDigit(text[0]) { // * begins an alias
		return false
	}
	for _, c := range text {
		if !isLetter(c) && !isDigit(c) && c != '-' && c != '_' && c != '.' && c != '/' && c != '*' {
			return false
		}
	}
	if isDigit(text[0]) {
		return !number.Match(text)
	}
	return len(text) > len("false") || !slices.ContainsFunc([]string{"true", "false", "null", "yes", "no", "on", "off", "y", "n"}, func(word string) bool {
		return strings.EqualFold(word, string(text))
	})
}

func isLetter(c byte) bool { return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' }

func isDigit(c byte) bool { return c >= '0' && c <= '9' }

// flowYAML writes a value as people would in one line of a declaration.
func flowYAML(value any) string {
	data, err := json.Marshal(value)
	if err != nil {
		return "?" // nothing that is written here fails to marshal
	}
	var b strings.Builder
	for len(data) > 0 {
		if data[0] != '"' {
			// Numbers, true, false, null and what holds it all together.
			if b.WriteByte(data[0]); data[0] == ',' || data[0] == ':' {
				b.WriteByte(' ')
			}
			data = data[1:]
			continue
		}
		end := 1
		for data[end] != '"' {
			if data[end] == '\\' {
				end++
			}
			end++
		}
		if quoted, text := data[:end+1], data[1:end]; isPlain(text) {
			b.Write(text)
		} else {
			b.Write(quoted)
		}
		data = data[end+1:]
	}
	return b.String()
}
