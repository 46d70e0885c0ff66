package explain

import (
	"bytes"
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
	decoder := json.NewDecoder(bytes.NewReader(data))
	decoder.UseNumber()
	var b strings.Builder
	writeFlow(&b, decoder)
	return b.String()
}

// writeFlow writes the decoder's next value.
func writeFlow(b *strings.Builder, decoder *json.Decoder) {
	token, err := decoder.Token()
	if err != nil {
		return
	}
	switch v := token.(type) {
	case json.Delim:
		b.WriteString(v.String())
		if v == ']' || v == '}' {
			return
		}
		for first := true; decoder.More(); first = false {
			if !first {
				b.WriteString(", ")
			}
			if v == '{' {
				writeFlow(b, decoder)
				b.WriteString(": ")
			}
			writeFlow(b, decoder)
		}
		writeFlow(b, decoder) // the end
	case string:
		if plain.MatchString(v) && !number.MatchString(v) {
			b.WriteString(v)
			return
		}
		quoted, err := json.Marshal(v)
		if err == nil {
			b.Write(quoted)
		}
	case json.Number:
		b.WriteString(v.String())
	case bool:
		b.WriteString(map[bool]string{true: "true", false: "false"}[v])
	default:
		b.WriteString("null")
	}
}
