package decide

import (
	"keelson.dev/services/scheduler/internal/plugin"
	"keelson.dev/services/scheduler/internal/state"
)

// rules are all filters for one pod, in the order in which their refusals count.
type rules struct {
	pod    *state.Pod
	local  []plugin.Filter
	global []plugin.Shared
	// stale is true if the global filters must be refreshed before they are asked.
	stale bool
	// settled is true if the filters that do not depend on the pods of the node have
	// been asked already.
	settled bool
}

func (c *class) rules(p *state.Pod, extra []plugin.Filter) *rules {
	r := &rules{pod: p, local: c.filters, global: c.global}
	if len(extra) > 0 {
		r.local = append(append(make([]plugin.Filter, 0, len(c.filters)+len(extra)), c.filters...), extra...)
	}
	return r
}

// newRules returns the rules for a pod of no class.
func (e *Engine) newRules(p *state.Pod, extra []plugin.Filter) *rules {
	r := &rules{pod: p, local: append(plugin.Local(p), extra...), global: plugin.Global(e.env, p)}
	for _, g := range r.global {
		g.Refresh()
	}
	return r
}

// changed passes an assumption of a trial on.
func (r *rules) changed(ch *state.Change) {
	for _, g := range r.global {
		g.Apply(ch)
	}
	r.stale = true
}

// refuses returns the first filter that refuses the node, or nil.
func (r *rules) refuses(n *state.Node) plugin.Filter {
	if r.stale {
		r.stale = false
		for _, g := range r.global {
			g.Refresh()
		}
	}
	for _, f := range r.local {
		if r.settled {
			if _, varies := f.(plugin.Curable); !varies {
				continue
			}
		}
		if !f.Check(n) {
			return f
		}
	}
	for _, g := range r.global {
		if !g.Check(n) {
			return g
		}
	}
	return nil
}

// fits reports whether the pod fits the node, both as the node is and together with the
// pods of the same or a higher priority that are nominated for it: they may come, or go
// elsewhere. If the pod does not fit, refused, unless it is nil, is called with the
// filter, while that still sees why.
func (e *Engine) fits(r *rules, n *state.Node, refused func(plugin.Filter)) bool {
	ask := func() bool {
		f := r.refuses(n)
		if f != nil && refused != nil {
			refused(f)
		}
		return f == nil
	}
	if len(n.Nominated) == 0 {
		return ask()
	}
	t := e.env.Try(r.changed)
	for _, q := range n.Nominated {
		if q.Priority >= r.pod.Priority && q.UID != r.pod.UID {
			t.Add(n, q)
		}
	}
	if t.Mark() == 0 {
		return ask()
	}
	ok := ask()
	t.Undo(0)
	return ok && ask()
}
