package speech

import (
	"bytes"
	"regexp"
	"strings"
)

var (
	method      = regexp.MustCompile(`^[A-Z0-9_-]{1,20} [/*\[0-9A-Za-z]`)
	requestLine = regexp.MustCompile(`^[A-Z0-9_-]{1,20} [/*\[0-9A-Za-z].* HTTP/1\.[0-9]\r?$`)
)

func httpAsks(r *reader) {
	r.until(20, func(c byte) bool { return c == ' ' }, func(c byte) bool { return upper(c) || digit(c) || c == '-' || c == '_' })
	r.must(r.at > 1)
	target := r.byte()
	r.must(target == '/' || target == '*' || target == '[' || digit(target) || letter(target))
	line, _, whole := bytes.Cut(r.Bytes, []byte("\n"))
	for _, c := range line {
		r.must(c >= ' ' && c != 127 || c == '\r')
	}
	if whole {
		// One byte a rune, so that the expression sees bytes.
		runes := make([]rune, len(line))
		for i, c := range line {
			runes[i] = rune(c)
		}
		r.must(method.MatchString(string(runes)) && requestLine.MatchString(string(runes)))
	} else if len(r.Bytes) < Window {
		panic(More)
	}
}

func httpAnswers(r *reader) {
	r.text("HTTP/1.")
	r.must(digit(r.byte()))
	r.text(" ")
	first := r.byte()
	r.must(digit(first) && first != '0')
	r.must(digit(r.byte()))
	r.must(digit(r.byte()))
}

func http2Asks(r *reader) { r.text("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n") }

func sshAsks(r *reader) {
	r.text("SSH-")
	sshVersion(r)
}

// sshAnswers skips lines of text, none of which begins with "SSH-".
func sshAnswers(r *reader) {
	for {
		line := r.Bytes[r.at:]
		if strings.HasPrefix("SSH-", string(line[:min(4, len(line))])) {
			r.text("SSH-")
			sshVersion(r)
			return
		}
		for c := byte(0); c != '\n'; {
			c = r.byte()
			r.must(c >= ' ' && c != 127 || c == '\r' || c == '\n' || c == '\t')
		}
	}
}

func sshVersion(r *reader) {
	if r.byte() == '1' {
		r.text(".99-")
	} else {
		r.at--
		r.text("2.0-")
	}
	r.must(printable(r.byte()))
}

// number reads a number of RESP and the end of its line.
func (r *reader) number(signs bool) {
	start := r.at
	if c := r.byte(); !digit(c) {
		r.must(signs && (c == '-' || c == '+'))
	}
	for c := r.byte(); c != '\r'; c = r.byte() {
		r.must(digit(c) && r.at-start < 20)
	}
	r.must(r.at-start <= 20)
	r.text("\n")
}

// What people and their tools write to Redis without RESP.
const redisWords = `get set del ttl ping auth info quit echo keys incr hset hget mget mset time role scan sync
	hello multi psync lpush rpush select config client dbsize exists expire command monitor cluster publish slowlog subscrib*
	acl type decr llen lpop rpop sadd zadd eval save wait xadd hkeys setex setnx xread reset watch debug append strlen getset
	lrange unlink object memory module script bgsave zrange hgetall flushdb latency evalsha persist flushall smembers
	replconf lastsave shutdown`

func redisAsks(r *reader) {
	first := r.byte()
	r.must(printable(first))
	if first == '*' {
		r.must(r.byte() != '0')
		r.at--
		r.number(false)
		r.text("$")
		r.number(false)
		return
	}
	r.at = 0
	name := strings.ToLower(r.until(longestWord, blank, printable))
	r.must(isOneOf(redisWords, name))
	ended := r.Bytes[r.at-1]
	next := r.byte()
	r.must(ended != ' ' || next != '/')
}

// longestWord is how long a command may be.
const longestWord = 20

func redisAnswers(r *reader) {
	switch kind := r.byte(); kind {
	case '+', '-':
		first, second := r.byte(), byte(0)
		r.must(upper(first))
		second = r.byte()
		r.must(upper(second))
		if kind == '+' && first == 'O' && second == 'K' {
			r.text("\r")
		}
	case ':', '$', '*', '(':
		r.number(true)
	case '%', '~', '>', '=', '!', '|':
		r.number(false)
	case '_':
		r.text("\r\n")
	case '#':
		value := r.byte()
		r.must(value == 't' || value == 'f')
		r.text("\r\n")
	default:
		r.must(false)
	}
}
