package compile

// Findings tell authors what they should know: what of a contract is empty may take
// longer to find out than what every host has to do. No enforcement point waits for
// that, so it is found out right after. Whoever asks for findings waits for them, and
// so does the next compilation: nobody sees half of them, and none get lost.

// later are findings that may still be found out.
type later struct {
	found    chan struct{} // closed when they are
	findings *list[Finding]
}

// wait returns them when they are found out.
func (l *later) wait() *list[Finding] {
	<-l.found
	return l.findings
}

// tell takes the last step of a compilation. Of the first one somebody waits for all.
func (c *compiler) tell(d *change) {
	l := &later{found: make(chan struct{})}
	c.later = l
	tell := func() {
		c.noteContradictions(d)
		c.hear(&c.units.babel, c.noteBabel)
		for _, i := range c.withdrawn {
			c.statements[i] = statement{}
		}
		c.dead += len(c.withdrawn)
		c.prune()
		l.findings = c.told.list()
		close(l.found)
	}
	if d.first {
		tell()
		return
	}
	go tell()
}
