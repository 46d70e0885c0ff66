package compile

import "bocage.dev/bocage"

// stateResponses states what prevailing threat conditions tighten beyond what
// their level does.
func (c *compiler) stateResponses() {
	for _, r := range c.in.responses {
		c.stateResponse(r)
	}
}

func (c *compiler) stateResponse(r *bocage.Response) {
	then := &r.Spec.Then
	c.checkSide("Response", r, "spec.when.workloads", &r.Spec.When.Workloads)
	from := c.answers(r, "spec.then.refuseFrom", then.RefuseFrom, func(cell bocage.ResponseCell) bocage.CellMatch {
		return bocage.CellMatch{To: cell.Peer, Ports: cell.Ports}
	})
	to := c.answers(r, "spec.then.refuseTo", then.RefuseTo, func(cell bocage.ResponseCell) bocage.CellMatch {
		return bocage.CellMatch{From: cell.Peer, Ports: cell.Ports}
	})
	c.noteDuties("Response", r, "spec.then.require", then.Require)
	for _, t := range c.in.threatConditions {
		if !t.Spec.Level.Includes(r.Spec.When.Level) {
			continue
		}
		concerned := c.pop.concerned(t)
		if picked := c.pop.side(r.Spec.When.Workloads); !picked.any {
			concerned = intersect(concerned, picked.list)
		}
		if len(concerned) == 0 {
			continue
		}
		who := side{list: concerned}
		for _, a := range from {
			c.state(statement{kind: answer, from: who, to: a.to, ports: a.ports, by: []bocage.Ref{a.ref}, until: t.Spec.Expires})
		}
		for _, a := range to {
			c.state(statement{kind: answer, from: a.from, to: who, ports: a.ports, by: []bocage.Ref{a.ref}, until: t.Spec.Expires})
		}
		for _, b := range []block{{who, side{any: true}, everything}, {side{any: true}, who, everything}} {
			c.stateDuties("Response", r, "spec.then.require", then.Require, []block{b},
				statement{until: t.Spec.Expires, duty: duty{yields: true}})
		}
		if wished(then.Disposition) == bocage.VerdictReject {
			c.stateBoth(statement{kind: dispose, ports: everything, by: []bocage.Ref{Ref("Response", r, "spec.then.disposition")},
				until: t.Spec.Expires, disposition: bocage.VerdictReject}, concerned)
		}
		c.touched = append(c.touched, concerned...)
	}
}

// answered is a cell of a response, the concerned workloads apart.
type answered struct {
	block
	ref bocage.Ref
}

func (c *compiler) answers(r *bocage.Response, list string, cells []bocage.ResponseCell, match func(bocage.ResponseCell) bocage.CellMatch) []answered {
	var out []answered
	for i := range cells {
		at := field(list, i)
		c.checkSide("Response", r, at+".peer", &cells[i].Peer)
		c.noteUnknownData(Ref("Response", r, at+".peer.data"), cells[i].Peer.Data)
		for _, b := range c.resolve(match(cells[i])) {
			out = append(out, answered{b, Ref("Response", r, at)})
		}
	}
	return out
}
