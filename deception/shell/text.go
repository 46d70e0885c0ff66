package shell

import (
	"crypto/md5"
	"crypto/sha1"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

func cat(c *call) int {
	_, names := c.options()
	text, ok := c.input(names)
	fmt.Fprint(c.std.Out, text)
	return truth(ok)
}

// count reads the number of head, tail and the like: -n 5, -n5 or -5.
func (c *call) count(otherwise int) (n int, names []string) {
	n = otherwise
	words := c.words[1:]
	for i := 0; i < len(words); i++ {
		w := words[i]
		switch {
		case (w == "-n" || w == "-c") && i+1 < len(words):
			i++
			w = words[i]
		case strings.HasPrefix(w, "-n") || strings.HasPrefix(w, "-c"):
			w = w[2:]
		case len(w) > 1 && w[0] == '-' && w != "--":
			w = w[1:]
		default:
			names = append(names, w)
			continue
		}
		if v, err := strconv.Atoi(strings.TrimPrefix(w, "+")); err == nil && v >= 0 {
			n = v
		}
	}
	return n, names
}

func linesOf(text string) []string {
	if text == "" {
		return nil
	}
	return strings.Split(strings.TrimSuffix(text, "\n"), "\n")
}

func (c *call) print(lines []string) {
	if len(lines) > 0 {
		fmt.Fprintln(c.std.Out, strings.Join(lines, "\n"))
	}
}

func head(c *call) int {
	n, names := c.count(10)
	text, ok := c.input(names)
	lines := linesOf(text)
	c.print(lines[:min(n, len(lines))])
	return truth(ok)
}

func tail(c *call) int {
	n, names := c.count(10)
	text, ok := c.input(names)
	lines := linesOf(text)
	c.print(lines[max(0, len(lines)-n):])
	return truth(ok)
}

func wc(c *call) int {
	letters, names := c.options()
	text, ok := c.input(names)
	var out []string
	for _, part := range []struct {
		letter string
		n      int
	}{{"l", strings.Count(text, "\n")}, {"w", len(strings.Fields(text))}, {"c", len(text)}} {
		if letters == "" || strings.Contains(letters, part.letter) {
			out = append(out, strconv.Itoa(part.n))
		}
	}
	fmt.Fprintln(c.std.Out, strings.Join(append(out, names...), " "))
	return truth(ok)
}

func grep(c *call) int {
	letters, rest := c.options()
	if len(rest) == 0 {
		fmt.Fprintln(c.std.Err, "Usage: grep [OPTION]... PATTERNS [FILE]...\nTry 'grep --help' for more information.")
		return 2
	}
	expression := rest[0]
	if c.words[0] == "fgrep" || strings.Contains(letters, "F") {
		expression = regexp.QuoteMeta(expression)
	}
	if strings.Contains(letters, "i") {
		expression = "(?i)" + expression
	}
	re, err := regexp.Compile(expression)
	if err != nil {
		return c.fail(2, "Invalid regular expression")
	}
	text, ok := c.input(rest[1:])
	var found []string
	for _, line := range linesOf(text) {
		if re.MatchString(line) != strings.Contains(letters, "v") {
			found = append(found, line)
		}
	}
	switch {
	case strings.Contains(letters, "q"):
	case strings.Contains(letters, "c"):
		fmt.Fprintln(c.std.Out, len(found))
	default:
		c.print(found)
	}
	if !ok {
		return 2
	}
	return truth(len(found) > 0)
}

func cut(c *call) int {
	separator, fields := "\t", ""
	var names []string
	words := c.words[1:]
	for i := 0; i < len(words); i++ {
		w := words[i]
		value := func() string {
			if len(w) > 2 {
				return w[2:]
			}
			if i+1 < len(words) {
				i++
				return words[i]
			}
			return ""
		}
		switch {
		case strings.HasPrefix(w, "-d"):
			separator = value()
		case strings.HasPrefix(w, "-f"), strings.HasPrefix(w, "-c"):
			fields = value()
		case !strings.HasPrefix(w, "-"):
			names = append(names, w)
		}
	}
	text, ok := c.input(names)
	if separator == "" {
		separator = "\t"
	}
	var out []string
	for _, line := range linesOf(text) {
		parts := strings.Split(line, separator)
		var kept []string
		for i, part := range parts {
			if inRanges(fields, i+1) {
				kept = append(kept, part)
			}
		}
		out = append(out, strings.Join(kept, separator))
	}
	c.print(out)
	return truth(ok)
}

// inRanges reads lists as 1,3-5,7-.
func inRanges(list string, n int) bool {
	for part := range strings.SplitSeq(list, ",") {
		from, to, isRange := strings.Cut(part, "-")
		low, err := strconv.Atoi(from)
		if err != nil {
			low = 1
		}
		high := low
		if isRange {
			if high, err = strconv.Atoi(to); err != nil {
				high = n
			}
		}
		if low <= n && n <= high {
			return true
		}
	}
	return false
}

func sortLines(c *call) int {
	letters, names := c.options()
	text, ok := c.input(names)
	lines := linesOf(text)
	number := func(s string) float64 {
		end := 0
		s = strings.TrimLeft(s, " \t")
		for end < len(s) && strings.IndexByte("-.0123456789", s[end]) >= 0 {
			end++
		}
		v, _ := strconv.ParseFloat(s[:end], 64)
		return v
	}
	slices.SortStableFunc(lines, func(a, b string) int {
		if strings.Contains(letters, "n") {
			switch x, y := number(a), number(b); {
			case x < y:
				return -1
			case x > y:
				return 1
			}
		}
		return strings.Compare(a, b)
	})
	if strings.Contains(letters, "u") {
		lines = slices.Compact(lines)
	}
	if strings.Contains(letters, "r") {
		slices.Reverse(lines)
	}
	c.print(lines)
	return truth(ok)
}

func uniq(c *call) int {
	letters, names := c.options()
	text, ok := c.input(names)
	lines := linesOf(text)
	var out []string
	for i := 0; i < len(lines); {
		n := 1
		for i+n < len(lines) && lines[i+n] == lines[i] {
			n++
		}
		if strings.Contains(letters, "c") {
			out = append(out, fmt.Sprintf("%7d %s", n, lines[i]))
		} else {
			out = append(out, lines[i])
		}
		i += n
	}
	c.print(out)
	return truth(ok)
}

func tr(c *call) int {
	letters, rest := c.options()
	if len(rest) == 0 {
		return c.fail(1, "missing operand")
	}
	text, _ := c.input(nil)
	from := characters(rest[0])
	if strings.Contains(letters, "d") {
		fmt.Fprint(c.std.Out, strings.Map(func(r rune) rune {
			if slices.Contains(from, r) {
				return -1
			}
			return r
		}, text))
		return 0
	}
	var to []rune
	if len(rest) > 1 {
		to = characters(rest[1])
	}
	fmt.Fprint(c.std.Out, strings.Map(func(r rune) rune {
		if i := slices.Index(from, r); i >= 0 && len(to) > 0 {
			return to[min(i, len(to)-1)]
		}
		return r
	}, text))
	return 0
}

// characters reads a set of tr: ranges, escapes and two classes.
func characters(set string) []rune {
	set = strings.NewReplacer("[:upper:]", "A-Z", "[:lower:]", "a-z", "[:digit:]", "0-9", "[:space:]", " \t\n\r", `\n`, "\n", `\t`, "\t", `\r`, "\r", `\\`, `\`).Replace(set)
	runes := []rune(set)
	var out []rune
	for i := 0; i < len(runes) && len(out) < 512; i++ {
		if i+2 < len(runes) && runes[i+1] == '-' && runes[i] <= runes[i+2] && runes[i+2] < 256 {
			for r := runes[i]; r <= runes[i+2]; r++ {
				out = append(out, r)
			}
			i += 2
			continue
		}
		out = append(out, runes[i])
	}
	return out
}

func rev(c *call) int {
	_, names := c.options()
	text, ok := c.input(names)
	lines := linesOf(text)
	for i, line := range lines {
		runes := []rune(line)
		slices.Reverse(runes)
		lines[i] = string(runes)
	}
	c.print(lines)
	return truth(ok)
}

func tee(c *call) int {
	letters, names := c.options()
	text, _ := c.input(nil)
	fmt.Fprint(c.std.Out, text)
	result := 0
	for _, name := range names {
		to, done, err := c.create(name, strings.Contains(letters, "a"))
		if err != nil {
			result = c.fail(1, "%s", err)
			continue
		}
		fmt.Fprint(to, text)
		done()
	}
	return result
}

func seq(c *call) int {
	var numbers []int
	for _, w := range c.words[1:] {
		n, err := strconv.Atoi(w)
		if err != nil {
			return c.fail(1, "invalid floating point argument: ‘%s’", w)
		}
		numbers = append(numbers, n)
	}
	first, step, last := 1, 1, 0
	switch len(numbers) {
	case 1:
		last = numbers[0]
	case 2:
		first, last = numbers[0], numbers[1]
	case 3:
		first, step, last = numbers[0], numbers[1], numbers[2]
	default:
		return c.fail(1, "missing operand")
	}
	if step == 0 {
		return c.fail(1, "invalid Zero increment value: ‘0’")
	}
	for n := first; (step > 0) == (n <= last) || n == last; n += step {
		if _, err := fmt.Fprintln(c.std.Out, n); err != nil {
			return 1
		}
		if next := n + step; (next > n) != (step > 0) {
			break // it went around
		}
	}
	return 0
}

func yes(c *call) int {
	line := "y"
	if len(c.words) > 1 {
		line = strings.Join(c.words[1:], " ")
	}
	for {
		if _, err := fmt.Fprintln(c.std.Out, line); err != nil {
			return 141
		}
	}
}

func base64Text(c *call) int {
	letters, names := c.options()
	text, ok := c.input(names)
	if strings.Contains(letters, "d") {
		clean := strings.Map(func(r rune) rune {
			if r == '\n' || r == '\r' {
				return -1
			}
			return r
		}, text)
		decoded, err := base64.StdEncoding.DecodeString(clean)
		fmt.Fprint(c.std.Out, string(decoded))
		if err != nil {
			return c.fail(1, "invalid input")
		}
		return truth(ok)
	}
	encoded := base64.StdEncoding.EncodeToString([]byte(text))
	for ; len(encoded) > 76 && !strings.Contains(letters, "w"); encoded = encoded[76:] {
		fmt.Fprintln(c.std.Out, encoded[:76])
	}
	fmt.Fprintln(c.std.Out, encoded)
	return truth(ok)
}

func sums(c *call) int {
	_, names := c.options()
	if len(names) == 0 {
		names = []string{"-"}
	}
	result := 0
	for _, name := range names {
		text, ok := c.input([]string{name})
		if !ok {
			result = 1
			continue
		}
		var sum []byte
		switch c.words[0] {
		case "md5sum":
			s := md5.Sum([]byte(text))
			sum = s[:]
		case "sha1sum":
			s := sha1.Sum([]byte(text))
			sum = s[:]
		default:
			s := sha256.Sum256([]byte(text))
			sum = s[:]
		}
		fmt.Fprintf(c.std.Out, "%x  %s\n", sum, name)
	}
	return result
}

func xargs(c *call) int {
	text, _ := c.input(nil)
	words := c.words[1:]
	for len(words) > 0 && strings.HasPrefix(words[0], "-") {
		if len(words[0]) == 2 && strings.Contains("nIPL", words[0][1:]) && len(words) > 1 {
			words = words[1:]
		}
		words = words[1:]
	}
	if len(words) == 0 {
		words = []string{"echo"}
	}
	fields := strings.Fields(text)
	return c.runNested(append(slices.Clone(words), fields[:min(len(fields), 1024)]...))
}

// awk knows the one program that everybody uses: printing fields.
func awk(c *call) int {
	separator, program := "", ""
	var names []string
	words := c.words[1:]
	for i := 0; i < len(words); i++ {
		switch w := words[i]; {
		case strings.HasPrefix(w, "-F"):
			if separator = w[2:]; separator == "" && i+1 < len(words) {
				i++
				separator = words[i]
			}
		case program == "":
			program = w
		default:
			names = append(names, w)
		}
	}
	text, ok := c.input(names)
	body := strings.TrimSpace(program)
	if _, rest, found := strings.Cut(body, "{"); found {
		body, _, _ = strings.Cut(rest, "}")
	}
	list, isPrint := strings.CutPrefix(strings.Trim(body, "; "), "print")
	if !isPrint {
		return truth(ok)
	}
	var out []string
	for _, line := range linesOf(text) {
		fields := strings.Fields(line)
		if separator != "" {
			fields = strings.Split(line, separator)
		}
		var parts []string
		for item := range strings.SplitSeq(list, ",") {
			item = strings.TrimSpace(item)
			switch n, err := strconv.Atoi(strings.TrimPrefix(item, "$")); {
			case item == "" || item == "$0":
				parts = append(parts, line)
			case item == "$NF" && len(fields) > 0:
				parts = append(parts, fields[len(fields)-1])
			case err == nil && strings.HasPrefix(item, "$") && n > 0 && n <= len(fields):
				parts = append(parts, fields[n-1])
			case strings.HasPrefix(item, `"`):
				parts = append(parts, strings.Trim(item, `"`))
			default:
				parts = append(parts, "")
			}
		}
		out = append(out, strings.Join(parts, " "))
	}
	c.print(out)
	return truth(ok)
}

// sed knows substitution and deletion by a pattern.
func sed(c *call) int {
	letters, rest := c.options()
	if len(rest) == 0 {
		return c.fail(1, "no script specified")
	}
	script, names := rest[0], rest[1:]
	text, ok := c.input(names)
	lines := linesOf(text)
	if len(script) > 3 && script[0] == 's' {
		parts := strings.Split(script[2:], string(script[1]))
		if len(parts) >= 2 {
			if re, err := regexp.Compile(parts[0]); err == nil {
				for i, line := range lines {
					if i > 2000 {
						break
					}
					lines[i] = re.ReplaceAllLiteralString(line, parts[1][:min(len(parts[1]), 64)])
				}
			}
		}
	}
	if !strings.Contains(letters, "i") {
		c.print(lines)
	}
	return truth(ok)
}
