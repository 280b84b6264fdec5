package state

import "slices"

// Nominate records that a pending pod is to go to a node once pods that it preempted have
// gone; an earlier nomination of the pod ends. The node need not be known.
func (c *Cluster) Nominate(p *Pod, node string) {
	key := Key{p.Namespace, p.Name}
	c.Withdraw(key)
	q := p.On(node)
	c.nominees[key] = q
	if n := c.names[node]; n != nil {
		n.Nominated = append(n.Nominated, q)
		c.note(Change{Node: n})
	}
}

// Withdraw ends the nomination of a pod and returns the pod as if on its node, or nil if
// there was none.
func (c *Cluster) Withdraw(key Key) *Pod {
	p := c.nominees[key]
	if p == nil {
		return nil
	}
	delete(c.nominees, key)
	if n := c.names[p.Node]; n != nil {
		n.Nominated = slices.DeleteFunc(n.Nominated, func(q *Pod) bool { return q == p })
		c.note(Change{Node: n})
	}
	return p
}

// Nominee returns a nominated pod as if on its node, or nil.
func (c *Cluster) Nominee(key Key) *Pod { return c.nominees[key] }

// Nominations returns the number of nominated pods.
func (c *Cluster) Nominations() int { return len(c.nominees) }

// welcome gives a new node the pods that are nominated for it.
func (c *Cluster) welcome(n *Node) {
	for _, p := range c.nominees {
		if p.Node == n.Name {
			n.Nominated = append(n.Nominated, p)
		}
	}
}

// Outranks reports whether a pod on any node has a lower priority.
func (c *Cluster) Outranks(priority int32) bool {
	for of := range c.priorities {
		if of < priority {
			return true
		}
	}
	return false
}

// Trial is a series of assumptions about which pods are on nodes, to learn what filters
// would say. It changes the cluster itself, but nothing in its log, so it must be undone
// before anything else uses the cluster.
type Trial struct {
	c *Cluster
	// changed is told of each assumption and of each that is undone.
	changed func(*Change)
	steps   []Change
}

// Try returns a trial without assumptions. changed must pass the changes on to the
// filters that follow them.
func (c *Cluster) Try(changed func(*Change)) *Trial { return &Trial{c: c, changed: changed} }

// Add assumes that a pod is on a node.
func (t *Trial) Add(n *Node, p *Pod) { t.step(Change{Node: n, Pod: p}) }

// Remove assumes that a pod of a node is gone.
func (t *Trial) Remove(n *Node, p *Pod) { t.step(Change{Node: n, Pod: p, Gone: true}) }

func (t *Trial) step(ch Change) {
	t.steps = append(t.steps, ch)
	t.apply(&ch)
}

// Mark returns the number of assumptions, to be passed to Undo.
func (t *Trial) Mark() int { return len(t.steps) }

// Undo takes back all assumptions made since mark, latest first.
func (t *Trial) Undo(mark int) {
	for len(t.steps) > mark {
		ch := t.steps[len(t.steps)-1]
		t.steps = t.steps[:len(t.steps)-1]
		ch.Gone = !ch.Gone
		t.apply(&ch)
	}
}

func (t *Trial) apply(ch *Change) {
	if ch.Gone {
		ch.Node.remove(ch.Pod)
		t.c.countGroups(ch.Node, ch.Pod, -1)
		t.c.countClaims(ch.Pod, -1)
	} else {
		ch.Node.add(ch.Pod)
		t.c.countGroups(ch.Node, ch.Pod, 1)
		t.c.countClaims(ch.Pod, 1)
	}
	t.changed(ch)
}
