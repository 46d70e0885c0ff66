package suricata

import (
	"testing"
	"time"
)

func TestPulse(t *testing.T) {
	at := func(ms int) time.Time { return time.Unix(1000, 0).Add(time.Duration(ms) * time.Millisecond) }
	p := pulse{first: 1}
	if p.silence(at(0)) != 0 {
		t.Error("silence before anything was sent")
	}
	for i := range 3 {
		p.sent(uint64(i+1), at(20*i))
	}
	if got := p.silence(at(50)); got != 50*time.Millisecond {
		t.Errorf("nothing heard: silence %s, want the age of the first probe", got)
	}
	p.heard(2)
	if got := p.silence(at(50)); got != 10*time.Millisecond || p.answered != 1 {
		t.Errorf("the second heard: silence %s, %d answered: want the age of the third", got, p.answered)
	}
	p.heard(1) // late, and 2 was heard
	p.heard(9) // never sent
	if p.answered != 1 {
		t.Errorf("%d answered", p.answered)
	}
	p.heard(3)
	if got := p.silence(at(5000)); got != 0 || p.answered != 2 {
		t.Errorf("all heard: silence %s, %d answered", got, p.answered)
	}
	for i := range 200 {
		p.sent(uint64(4+i), at(60+20*i))
	}
	if got := p.silence(at(60 + 20*199)); got < time.Second {
		t.Errorf("200 unheard: silence %s", got)
	}
	p = pulse{first: 300}
	p.sent(300, at(0))
	p.heard(299) // from before
	if p.answered != 0 || p.silence(at(10)) != 10*time.Millisecond {
		t.Error("a probe from before the reset counts")
	}
}

func TestParseStat(t *testing.T) {
	const fields = " S 1 2 3 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 987654 1 2"
	for _, name := range []string{"suricata", "a) R 1 (b", ""} {
		got, err := parseStat([]byte("12 (" + name + ")" + fields))
		if err != nil || got.state != 'S' || got.start != 987654 {
			t.Errorf("name %q: %+v %v", name, got, err)
		}
	}
	for _, bad := range []string{"", "12", "12 (x) S 1", "12 (x" + fields} {
		if _, err := parseStat([]byte(bad)); err == nil {
			t.Errorf("%q was read", bad)
		}
	}
}

func TestNextBackoff(t *testing.T) {
	v := &vigil{}
	var total time.Duration
	for i, want := range []time.Duration{0, firstBackoff, 2 * firstBackoff, 4 * firstBackoff} {
		if got := v.nextBackoff(); got != want {
			t.Errorf("backoff %d is %s, want %s", i, got, want)
		}
	}
	for range 20 {
		total = v.nextBackoff()
	}
	if total != lastBackoff {
		t.Errorf("longest backoff %s", total)
	}
}
