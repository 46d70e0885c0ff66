package suricata

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"regexp"
	"strconv"
	"strings"

	"bocage.dev/bocage"
)

// Limits of what a Load may carry: far above any real set (the public
// collection of 60,000 signatures has 40 MB), so that a mistake is refused
// before it costs memory.
const (
	maxSignatureBytes = 64 << 20 // of one profile
	maxFaults         = 10       // told of one profile
	maxQuoted         = 200      // bytes of a signature that an error repeats
)

// SignatureError says which signatures of a profile the engine refuses.
type SignatureError struct {
	Profile string
	Faults  []SignatureFault // at least one
	More    int              // faults beyond those listed
}

// SignatureFault is one thing that the engine has against a profile.
type SignatureFault struct {
	Line      int    // in the profile's signatures, from 1; 0 if it is not about one
	Words     string // the engine's own
	Signature string // shortened; empty if it is not about one
}

func (e *SignatureError) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "inspection profile %q is refused, nothing changed", e.Profile)
	for _, f := range e.Faults {
		if f.Line == 0 {
			fmt.Fprintf(&b, "\n  %s", f.Words)
			continue
		}
		fmt.Fprintf(&b, "\n  signatures line %d: %s: %s", f.Line, f.Words, f.Signature)
	}
	if e.More > 0 {
		fmt.Fprintf(&b, "\n  and %d more", e.More)
	}
	return b.String()
}

// checkProfiles refuses what can be refused without asking the engine.
func checkProfiles(profiles []bocage.Profile) error {
	numbers, names := map[uint16]string{}, map[string]bool{}
	for _, p := range profiles {
		switch other, taken := numbers[p.Number]; {
		case p.Number < 1 || p.Number > 4094:
			return fmt.Errorf("inspection profile %q: number %d is not a VLAN id from 1 to 4094", p.Name, p.Number)
		case taken:
			return fmt.Errorf("inspection profiles %q and %q have the same number %d", other, p.Name, p.Number)
		case p.Name == "":
			return fmt.Errorf("inspection profile %d has no name", p.Number)
		case names[p.Name]:
			return fmt.Errorf("inspection profile %q is given twice", p.Name)
		case len(p.Signatures) > maxSignatureBytes:
			return fmt.Errorf("inspection profile %q: signatures of %d bytes are over the limit of %d", p.Name, len(p.Signatures), maxSignatureBytes)
		}
		if i := strings.IndexByte(p.Signatures, 0); i >= 0 {
			return &SignatureError{Profile: p.Name, Faults: []SignatureFault{{
				Line: 1 + strings.Count(p.Signatures[:i], "\n"), Words: "holds a NUL byte"}}}
		}
		numbers[p.Number], names[p.Name] = p.Name, true
	}
	return nil
}

// rejectAction is the action reject in its four spellings, where a line starts
// a signature.
var rejectAction = regexp.MustCompile(`^[ \t]*reject(src|dst|both)?[ \t]`)

// normalize gives the signatures the form in which the engine gets them, line
// for line: line ends of every system become \n, and reject becomes drop, since
// an engine without addresses has nowhere to send a refusal from.
func normalize(signatures string) []byte {
	lines := strings.Split(strings.ReplaceAll(signatures, "\r\n", "\n"), "\n")
	continued := false // by a backslash at the end of the line before
	for i, line := range lines {
		if at := rejectAction.FindStringIndex(line); at != nil && !continued {
			lines[i] = "drop " + line[at[1]:]
		}
		continued = strings.HasSuffix(strings.TrimRight(line, " \t"), `\`)
	}
	return []byte(strings.TrimRight(strings.Join(lines, "\n"), "\n") + "\n")
}

// digest names normalized signatures.
func digest(signatures []byte) string {
	sum := sha256.Sum256(signatures)
	return hex.EncodeToString(sum[:12])
}

// engineLine is one line of the engine's own log in its JSON form.
type engineLine struct {
	Level  string `json:"log_level"`
	Engine struct {
		Message string `json:"message"`
	} `json:"engine"`
}

var (
	signatureFault = regexp.MustCompile(`(?s)^error parsing signature "(.*)" from file .* at line ([0-9]+)`)
	loadedCount    = regexp.MustCompile(`([0-9]+) rules successfully loaded, ([0-9]+) rules failed`)
	noneLoaded     = "but no rules were loaded"
)

// engineLog is what the engine's log says of a load of signatures.
type engineLog struct {
	Faults []SignatureFault
	Errors []string // about nothing in particular
	Counts [][2]int // loaded and failed signatures, for each set that was loaded
	Empty  bool     // a set held no signature
}

// readEngineLog reads what the engine said. Lines that are not its JSON, such
// as those of a library that writes to the same file, count as errors.
func readEngineLog(log []byte) engineLog {
	var (
		result engineLog
		words  string // of the error before, which the fault then places
	)
	for line := range bytes.Lines(log) {
		line = bytes.TrimSpace(line)
		if len(line) == 0 {
			continue
		}
		var l engineLine
		if json.Unmarshal(line, &l) != nil {
			result.Errors = append(result.Errors, shorten(string(line)))
			continue
		}
		message := l.Engine.Message
		if match := loadedCount.FindStringSubmatch(message); match != nil {
			loaded, _ := strconv.Atoi(match[1]) // digits by the pattern; too many of them is 0 and refused later
			failed, _ := strconv.Atoi(match[2])
			result.Counts = append(result.Counts, [2]int{loaded, failed})
		}
		if strings.Contains(message, noneLoaded) {
			result.Empty = true
		}
		if l.Level != "Error" && l.Level != "Critical" {
			continue
		}
		match := signatureFault.FindStringSubmatch(message)
		if match == nil {
			if words != "" {
				result.Errors = append(result.Errors, words)
			}
			words = shorten(message)
			continue
		}
		number, _ := strconv.Atoi(match[2])
		result.Faults = append(result.Faults, SignatureFault{
			Line: number, Words: cmp.Or(words, "cannot be read"), Signature: shorten(match[1])})
		words = ""
	}
	if words != "" {
		result.Errors = append(result.Errors, words)
	}
	return result
}

// refusal makes an error of what the engine said against a profile.
func (l engineLog) refusal(profile string) *SignatureError {
	faults := l.Faults
	if len(faults) == 0 {
		for _, words := range l.Errors {
			faults = append(faults, SignatureFault{Words: words})
		}
	}
	if len(faults) == 0 {
		faults = []SignatureFault{{Words: "the engine refuses it without a word"}}
	}
	kept := min(len(faults), maxFaults)
	return &SignatureError{Profile: profile, Faults: faults[:kept], More: len(faults) - kept}
}

// shorten keeps an error readable.
func shorten(s string) string {
	if len(s) <= maxQuoted {
		return s
	}
	return strings.ToValidUTF8(s[:maxQuoted], "") + "..."
}
