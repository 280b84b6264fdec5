// Package state is the scheduler's view of the cluster: nodes, what their pods request,
// and counts by topology domain. All are updated incrementally, so that a decision
// never walks over all pods.
//
// Nodes have a dense index, and so have the domains of each topology key, so that
// plugins can use plain arrays.
//
// It must never be used by two goroutines at once, and does no I/O.
package state

import (
	"maps"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/labels"
)

// Key names a pod.
type Key struct{ Namespace, Name string }

// Change is an entry in the log of changes to nodes and their pods. One with nothing but
// Node is a change of the pods that are nominated for it.
type Change struct {
	Node *Node
	// What is not 0 if the node itself changed.
	What NodeChange
	// Pod came, or went if Gone.
	Pod  *Pod
	Gone bool
}

// Cluster is the view of the cluster.
type Cluster struct {
	// Nodes by index; nil at indexes without a node.
	Nodes []*Node
	count int
	free  []int
	names map[string]*Node
	pods  map[Key]*Pod
	// homeless holds the pods on nodes that are not known (yet).
	homeless map[string]map[Key]*Pod
	byNS     map[string]map[Key]*Pod

	domains map[string]*Domains
	groups  map[string]*Group
	// Groups is in order of appearance; none is removed within an epoch.
	Groups []*Group
	live   int // groups with owners

	namespaces map[string]labels.Set
	// NamespacesSeen counts changes of namespaces' labels.
	NamespacesSeen uint64
	images         map[string]int // nodes that have an image
	claims         map[Key]int    // pods that use a claim
	priorities     map[int32]int  // pods on nodes by priority
	nominees       map[Key]*Pod

	// Epoch changes when indexes lose their meaning: a reader that kept any starts
	// over.
	Epoch uint64
	log   []Change
	base  uint64
}

// MaxBehind is the number of changes above which a reader starts over with all nodes, because that
// costs less than to look at the changes.
func (c *Cluster) MaxBehind() int { return len(c.Nodes) + 1000 }

// New returns an empty view.
func New() *Cluster {
	return &Cluster{
		names:      map[string]*Node{},
		pods:       map[Key]*Pod{},
		homeless:   map[string]map[Key]*Pod{},
		byNS:       map[string]map[Key]*Pod{},
		domains:    map[string]*Domains{},
		groups:     map[string]*Group{},
		namespaces: map[string]labels.Set{},
		images:     map[string]int{},
		claims:     map[Key]int{},
		priorities: map[int32]int{},
		nominees:   map[Key]*Pod{},
	}
}

// NodeCount returns the number of nodes.
func (c *Cluster) NodeCount() int { return c.count }

// Node returns a node by name, or nil.
func (c *Cluster) Node(name string) *Node { return c.names[name] }

// Pod returns a pod that is on a node, or nil.
func (c *Cluster) Pod(key Key) *Pod { return c.pods[key] }

// PodCount returns the number of pods on nodes.
func (c *Cluster) PodCount() int { return len(c.pods) }

// PodsIn returns the pods of a namespace that are on nodes.
func (c *Cluster) PodsIn(namespace string) map[Key]*Pod { return c.byNS[namespace] }

// Pods returns all pods on nodes.
func (c *Cluster) Pods() map[Key]*Pod { return c.pods }

// Position returns the end of the log.
func (c *Cluster) Position() uint64 { return c.base + uint64(len(c.log)) }

// Since returns the log after a position. It returns false if that part was dropped.
func (c *Cluster) Since(pos uint64) ([]Change, bool) {
	if pos < c.base {
		return nil, false
	}
	return c.log[pos-c.base:], true
}

// note appends to the log, which keeps no more changes than readers use: each holds a pod, which may
// be gone.
func (c *Cluster) note(ch Change) {
	if keep := c.MaxBehind(); len(c.log) >= 2*keep {
		n := copy(c.log, c.log[len(c.log)-keep:])
		c.base += uint64(len(c.log) - n)
		clear(c.log[n:])
		c.log = c.log[:n]
	}
	c.log = append(c.log, ch)
}

// SetNode adds or replaces a node and returns what changed; 0 means nothing that
// matters.
func (c *Cluster) SetNode(o *corev1.Node) NodeChange {
	n := c.names[o.Name]
	if n == nil {
		n = &Node{Name: o.Name}
		if last := len(c.free) - 1; last >= 0 {
			n.Index = c.free[last]
			c.free = c.free[:last]
			c.Nodes[n.Index] = n
		} else {
			n.Index = len(c.Nodes)
			c.Nodes = append(c.Nodes, n)
		}
		c.names[o.Name] = n
		c.count++
	}
	relabel := n.Object != nil && !maps.Equal(n.Object.Labels, o.Labels)
	if relabel {
		for _, p := range n.Pods {
			c.countGroups(n, p, -1)
		}
	}
	before := n.Images
	what := n.set(o)
	if what&(NodeAdded|NodeImages) != 0 {
		c.countImages(before, -1)
		c.countImages(n.Images, 1)
	}
	if what&(NodeAdded|NodeLabels) != 0 {
		for _, d := range c.domains {
			d.place(n)
		}
	}
	if relabel {
		for _, p := range n.Pods {
			c.countGroups(n, p, 1)
		}
	}
	if what != 0 {
		c.note(Change{Node: n, What: what})
	}
	if what&NodeAdded != 0 {
		pods := c.homeless[o.Name]
		delete(c.homeless, o.Name)
		for _, p := range pods {
			c.settle(n, p)
		}
		c.welcome(n)
	}
	return what
}

// RemoveNode removes a node. Its pods become homeless.
func (c *Cluster) RemoveNode(name string) {
	n := c.names[name]
	if n == nil {
		return
	}
	for len(n.Pods) > 0 {
		p := n.Pods[len(n.Pods)-1]
		c.unsettle(n, p)
		c.shelter(name, p)
	}
	c.countImages(n.Images, -1)
	delete(c.names, name)
	c.Nodes[n.Index] = nil
	c.free = append(c.free, n.Index)
	c.count--
	dead := 0
	for _, d := range c.domains {
		d.of[n.Index] = -1
		dead = max(dead, len(d.values))
	}
	c.note(Change{Node: n, What: NodeRemoved})
	if dead > 2*c.count+1000 {
		c.renumber()
	}
}

// renumber drops domains and groups without members.
func (c *Cluster) renumber() {
	c.Epoch++
	c.domains = map[string]*Domains{}
	c.groups = map[string]*Group{}
	c.Groups, c.live = nil, 0
	for _, n := range c.Nodes {
		if n == nil {
			continue
		}
		for _, p := range n.Pods {
			c.countGroups(n, p, 1)
		}
	}
}

func (c *Cluster) shelter(node string, p *Pod) {
	if c.homeless[node] == nil {
		c.homeless[node] = map[Key]*Pod{}
	}
	c.homeless[node][Key{p.Namespace, p.Name}] = p
}

// SetPod adds or replaces a pod that is bound or assumed to be on a node. It returns
// the pod of that name that it replaced.
func (c *Cluster) SetPod(p *Pod) (old *Pod) {
	if len(c.Groups) > 2*c.live+1024 {
		c.renumber()
	}
	key := Key{p.Namespace, p.Name}
	old = c.RemovePod(key)
	c.pods[key] = p
	if c.byNS[p.Namespace] == nil {
		c.byNS[p.Namespace] = map[Key]*Pod{}
	}
	c.byNS[p.Namespace][key] = p
	c.priorities[p.Priority]++
	c.countClaims(p, 1)
	if n := c.names[p.Node]; n != nil {
		c.settle(n, p)
	} else {
		c.shelter(p.Node, p)
	}
	return old
}

// RemovePod removes a pod and returns it, or nil if it was not known.
func (c *Cluster) RemovePod(key Key) *Pod {
	p := c.pods[key]
	if p == nil {
		return nil
	}
	delete(c.pods, key)
	if c.priorities[p.Priority]--; c.priorities[p.Priority] == 0 {
		delete(c.priorities, p.Priority)
	}
	c.countClaims(p, -1)
	delete(c.byNS[p.Namespace], key)
	if len(c.byNS[p.Namespace]) == 0 {
		delete(c.byNS, p.Namespace)
	}
	if n := c.names[p.Node]; n != nil {
		c.unsettle(n, p)
	} else if pods := c.homeless[p.Node]; pods != nil {
		delete(pods, key)
		if len(pods) == 0 {
			delete(c.homeless, p.Node)
		}
	}
	return p
}

func (c *Cluster) settle(n *Node, p *Pod) {
	n.add(p)
	c.countGroups(n, p, 1)
	c.note(Change{Node: n, Pod: p})
}

func (c *Cluster) unsettle(n *Node, p *Pod) {
	n.remove(p)
	c.countGroups(n, p, -1)
	c.note(Change{Node: n, Pod: p, Gone: true})
}

// SetNamespace sets a namespace's labels; nil deletes it. It reports whether they
// changed.
func (c *Cluster) SetNamespace(name string, set labels.Set) bool {
	old, known := c.namespaces[name]
	if set == nil {
		delete(c.namespaces, name)
		return known
	}
	c.namespaces[name] = set
	if known && maps.Equal(old, set) {
		return false
	}
	c.NamespacesSeen++
	return true
}

// NamespaceLabels returns a namespace's labels, or nil if it is not known.
func (c *Cluster) NamespaceLabels(name string) labels.Set { return c.namespaces[name] }

func (c *Cluster) countImages(images map[string]int64, sign int) {
	for name := range images {
		if c.images[name] += sign; c.images[name] == 0 {
			delete(c.images, name)
		}
	}
}

// NodesWithImage returns the number of nodes that have an image.
func (c *Cluster) NodesWithImage(name string) int { return c.images[name] }

func (c *Cluster) countClaims(p *Pod, sign int) {
	for _, name := range p.Claims {
		key := Key{p.Namespace, name}
		if c.claims[key] += sign; c.claims[key] == 0 {
			delete(c.claims, key)
		}
	}
}

// PodsWithClaim returns the number of pods on nodes that use a claim.
func (c *Cluster) PodsWithClaim(namespace, name string) int { return c.claims[Key{namespace, name}] }
