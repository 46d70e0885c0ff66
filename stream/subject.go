package stream

import (
	"fmt"
	"strings"
)

// maxSubject is the longest subject in bytes.
const maxSubject = 256

// CheckSubject says what is wrong with a subject: dotted tokens of letters,
// digits, '-', '_' and '$'; where wildcards are allowed, a token may be "*".
func CheckSubject(subject string, wildcards bool) error {
	if len(subject) > maxSubject {
		return fmt.Errorf("subject of %d bytes is longer than %d", len(subject), maxSubject)
	}
	for token := range strings.SplitSeq(subject, ".") {
		if token == "" {
			return fmt.Errorf("subject %q has an empty token", subject)
		}
		if token == "*" && wildcards {
			continue
		}
		for _, c := range []byte(token) {
			if !('a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || c == '-' || c == '_' || c == '$') {
				return fmt.Errorf("subject %q: character %q is not allowed", subject, c)
			}
		}
	}
	return nil
}

// Match says whether a subject is one of those that a pattern with "*" for single
// tokens stands for.
func Match(pattern, subject string) bool {
	for {
		p, patternRest, patternMore := strings.Cut(pattern, ".")
		s, subjectRest, subjectMore := strings.Cut(subject, ".")
		if p != s && p != "*" || patternMore != subjectMore {
			return false
		}
		if !patternMore {
			return true
		}
		pattern, subject = patternRest, subjectRest
	}
}
