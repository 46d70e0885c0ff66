// Package bocage holds the words that travel between the six functions of the
// system: what people declare, what policy compiles, what enforcement points
// decide and report, and what recognition concludes.
//
// The words form one loop, and every word has exactly one writer:
//
//	resource -> Ruleset -> map entries -> Event -> Evidence, Incident -> ThreatCondition -> Ruleset
//
// A person (through the api room) or host discovery writes resources. The
// policy room compiles them, together with the prevailing threat conditions,
// into a numbered and signed Ruleset. The dataplane room turns a Ruleset into
// kernel map entries and reports what happened as events, as inspection and
// deception do for the traffic that is steered to them. The recognition room
// weighs events into evidence and incidents, and writes threat conditions,
// which policy reads. So the loop closes in data, never in imports.
//
// The package depends on the standard library only and does no I/O. Its one
// piece of behaviour that everything else leans on is [Ruleset.Decide], the
// pure model that the eBPF programs must match packet for packet and that
// explains, proves and simulates.
package bocage
