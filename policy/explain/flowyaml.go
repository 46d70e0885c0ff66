package explain

import (
	"encoding/json"
	"regexp"
	"strings"
)

// plain is text that YAML reads as text without quotes.
var plain = regexp.MustCompile(`^[A-Za-z0-9*][-A-Za-z0-9_./*]*$`)

// number is text that YAML would read as something else than text.
var number = regexp.MustCompile(`^([0-9.]+([eE][0-9]+)?|0x[0-9A-Fa-f]+|0o[0-7]+|[0-9]{4}-[0-9]{2}-[0-9]{2}|true|false|null|yes|no|on|off|y|n|\*.*)$`)

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
		if quoted, text := data[:end+1], string(data[1:end]); plain.MatchString(text) && !number.MatchString(text) {
			b.WriteString(text)
		} else {
			b.Write(quoted)
		}
		data = data[end+1:]
	}
	return b.String()
}
