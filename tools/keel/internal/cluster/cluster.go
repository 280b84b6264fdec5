// Package cluster describes one local cluster: what was chosen for it (ports,
// ranges, names) and where its files lie. It must never start or change
// anything: others do, from this description.
package cluster

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"hash/fnv"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// Cluster is a cluster.json: everything that has to stay the same from one
// start to the next.
type Cluster struct {
	// Home is the directory that holds it; it is not stored.
	Home string `json:"-"`
	// ID tells clusters on one machine apart; it names links and namespaces.
	ID string `json:"id"`
	// Subnet is N of 10.89.N.0/24, the nodes' network, and of 10.90.N.0/24, the
	// load balancers' addresses.
	Subnet int `json:"subnet"`
	// HTTPSPort and GRPCPort are the first apiserver's.
	HTTPSPort int `json:"httpsPort"`
	GRPCPort  int `json:"grpcPort"`
	// Members are all apiservers of a control plane that has, or had, more than one.
	Members []Member `json:"members,omitempty"`
	// Founders are those that it began with: their flags never change.
	Founders []Member `json:"founders,omitempty"`
	// Recovering is the member from whose disk a recovery has begun and not ended.
	Recovering string `json:"recovering,omitempty"`
	// Named is how many names were given to members: none is given twice.
	Named int `json:"named,omitempty"`
	// Nodes are the nodes with a container runtime; Simulated counts the others.
	Nodes     []Node `json:"nodes"`
	Simulated int    `json:"simulatedNodes,omitempty"`
	// Leaving are nodes that were asked away and may not have gone yet.
	Leaving []Node `json:"leavingNodes,omitempty"`
	// Egress gives nodes a route out of the machine.
	Egress bool `json:"egress,omitempty"`
	// OTLPEndpoint receives the spans, beside the apiserver.
	OTLPEndpoint string `json:"otlpEndpoint,omitempty"`
	// ClusterCIDR, ServiceCIDR, ClusterDNS and Domain are those of the pods.
	ClusterCIDR string `json:"clusterCIDR"`
	ServiceCIDR string `json:"serviceCIDR"`
	ClusterDNS  string `json:"clusterDNS"`
	Domain      string `json:"domain"`
	// Joined is set where this home holds a node of another machine's cluster.
	Joined *Joined `json:"joined,omitempty"`
}

// Member is an apiserver that carries the cluster's state together with others.
type Member struct {
	Name string `json:"name"`
	// IP is its own address of this machine in the nodes' network: all members use
	// the same ports.
	IP string `json:"ip"`
	// Join is the gRPC addresses, with commas, of those it asked to let it in; empty
	// for a founder. It stays what it was: it is a flag of a process that must not be
	// restarted when others come or go.
	Join string `json:"join,omitempty"`
	// Client says that it is no member, and uses the stores of those who are.
	Client bool `json:"client,omitempty"`
	// Leaving is set while its place is being taken away: whether it has one must be
	// asked of the others.
	Leaving bool `json:"leaving,omitempty"`
}

// The ports on which members serve each other, on their own addresses.
const (
	PeerPort = 7443
	EtcdPort = 2380
)

// Joined says which cluster a joined node belongs to.
type Joined struct {
	// GRPC is host:port of the apiservers, with commas.
	GRPC string `json:"grpc"`
	// NodeIP is this machine's address in that cluster.
	NodeIP string `json:"nodeIP"`
}

// Node is a node on this machine.
type Node struct {
	Name string `json:"name"`
	// IP is its address in the nodes' network.
	IP string `json:"ip"`
	// Zone is its failure domain.
	Zone string `json:"zone"`
}

// Index is the number in the name of one of the cluster's own nodes, node-N.
func (n Node) Index() int {
	i, err := strconv.Atoi(strings.TrimPrefix(n.Name, "node-"))
	if err != nil {
		return -1
	}
	return i
}

// Gateway is the host's address in the nodes' network.
func (c *Cluster) Gateway() string { return fmt.Sprintf("10.89.%d.1", c.Subnet) }

// NodeCIDR is the nodes' network, with the host's address.
func (c *Cluster) NodeCIDR() string { return fmt.Sprintf("10.89.%d.1/24", c.Subnet) }

// LoadBalancerCIDR is the range of the load balancers' addresses.
func (c *Cluster) LoadBalancerCIDR() string { return fmt.Sprintf("10.90.%d.0/24", c.Subnet) }

// Bridge is the name of the host's link into the nodes' network.
func (c *Cluster) Bridge() string { return "ks" + c.ID }

// Namespace is the name of a node's network namespace.
func (c *Cluster) Namespace(node string) string { return "keelson-" + c.ID + "-" + node }

// CgroupRoot is the cgroup under which a node's pods live.
func (c *Cluster) CgroupRoot(node string) string { return "/keelson-" + c.ID + "/" + node }

// ProcessCgroup is the cgroup of one of the cluster's own processes, and of what it
// starts outside of pods.
func (c *Cluster) ProcessCgroup(name string) string { return "/keelson-" + c.ID + "/keel/" + name }

// Path joins names to the home directory.
func (c *Cluster) Path(names ...string) string {
	return filepath.Join(append([]string{c.Home}, names...)...)
}

// Identity is the directory of a service's certificate.
func (c *Cluster) Identity(name string) string { return c.Path("pki", name) }

// Kubeconfig is the administrator's kubeconfig.
func (c *Cluster) Kubeconfig() string { return c.Path("kubeconfig") }

// GRPC is the apiservers' gRPC addresses, with commas, as services on this machine
// use them.
func (c *Cluster) GRPC() string { return c.grpcAt("127.0.0.1") }

// NodeGRPC is the apiservers' gRPC addresses, with commas, as nodes use them.
func (c *Cluster) NodeGRPC() string { return c.grpcAt(c.Gateway()) }

// grpcAt is where the apiservers serve gRPC; the only one is reached at host.
func (c *Cluster) grpcAt(host string) string {
	switch {
	case c.Joined != nil:
		return c.Joined.GRPC
	case len(c.Members) == 0:
		return fmt.Sprintf("%s:%d", host, c.GRPCPort)
	}
	var out []string
	for _, m := range c.Members {
		out = append(out, fmt.Sprintf("%s:%d", m.IP, c.GRPCPort))
	}
	return strings.Join(out, ",")
}

// HTTPS is the REST address for clients: the apiserver's, or the balancer's in
// front of several.
func (c *Cluster) HTTPS() string { return fmt.Sprintf("127.0.0.1:%d", c.HTTPSPort) }

// ErrNone says that a directory holds no cluster.
var ErrNone = errors.New("no cluster here")

// Load reads a home directory.
func Load(home string) (*Cluster, error) {
	home, err := filepath.Abs(home)
	if err != nil {
		return nil, err
	}
	if err := Trust(home); err != nil {
		return nil, err
	}
	data, err := os.ReadFile(filepath.Join(home, file))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%s: %w; `keel up --home %s` makes one", home, ErrNone, home)
	}
	if err != nil {
		return nil, err
	}
	c := &Cluster{}
	err = json.Unmarshal(data, c)
	if err == nil {
		err = ValidID(c.ID)
	}
	if err != nil {
		return nil, fmt.Errorf("%s/%s does not describe a cluster: %w", home, file, err)
	}
	c.Home = home
	if len(c.Founders) == 0 {
		c.Founders = slices.Clone(c.Members)
	}
	c.Named = max(c.Named, len(c.Members))
	return c, nil
}

// Save writes cluster.json, whole or not at all.
func (c *Cluster) Save() error {
	data, err := json.MarshalIndent(c, "", "  ")
	if err != nil {
		return err
	}
	return WriteFile(c.Path(file), append(data, '\n'), 0o600)
}

// unfinished begins the name of a file that WriteFile has not put in its place yet.
const unfinished = ".new-"

// WriteFile replaces a file in one step, so that a crash leaves the old one or
// the new one.
func WriteFile(path string, data []byte, mode os.FileMode) error {
	f, err := os.CreateTemp(filepath.Dir(path), newPrefix+"*")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	_, err = f.Write(data)
	err = errors.Join(err, f.Chmod(mode), f.Sync(), f.Close())
	if err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}

// Options are what a person may ask for at `keel up`.
type Options struct {
	Home      string
	Nodes     int
	Simulated int
	Port      int
	// APIServers is how many carry the state together; 0 keeps what is there, or 1.
	APIServers int
	Egress     bool
	// OTLPEndpoint replaces the stored one unless it is nil; "" sends spans nowhere else.
	OTLPEndpoint *string
	// Free, if set, fails where something on this machine has a new cluster's id.
	Free func(id string) error
}

// Open loads the cluster of a home directory, or chooses a new one. Options that
// differ from what is stored are taken over where a running cluster can follow
// (nodes, simulated nodes, egress, OTLP endpoint), and refused for the port.
func Open(o Options) (*Cluster, error) {
	home, err := filepath.Abs(o.Home)
	if err != nil {
		return nil, err
	}
	if err := errors.Join(Trust(home), Vacant(home)); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(home, 0o700); err != nil {
		return nil, err
	}
	c, err := Load(home)
	switch {
	case errors.Is(err, ErrNone):
		// Two at once would choose the same.
		unlock, lockErr := lockRegistry()
		if lockErr != nil {
			return nil, lockErr
		}
		defer unlock()
		c, err = choose(home, o.Port, max(o.APIServers, 1))
		if err == nil && o.Free != nil {
			err = o.Free(c.ID)
		}
		if err != nil {
			return nil, err
		}
		if err := errors.Join(c.Save(), c.register()); err != nil {
			return nil, err
		}
	case err != nil:
		return nil, err
	case o.Port != 0 && o.Port != c.HTTPSPort:
		return nil, fmt.Errorf("the cluster in %s uses port %d; `keel delete --home %s` first to change it", home, c.HTTPSPort, home)
	}
	if have := max(len(c.Members), 1); o.APIServers > 0 && o.APIServers != have {
		return nil, fmt.Errorf("there are %d apiservers in %s; `keel member add` and `keel member remove` change that", have, home)
	}
	if o.Nodes >= 0 {
		c.resize(o.Nodes)
	}
	if o.Simulated >= 0 {
		c.Simulated = o.Simulated
	}
	c.Egress = c.Egress || o.Egress
	if o.OTLPEndpoint != nil {
		c.OTLPEndpoint = *o.OTLPEndpoint
	}
	return c, c.Save()
}

// MaxNodes is how many nodes fit into a cluster's network on one machine.
const MaxNodes = 200

func (c *Cluster) resize(n int) {
	for len(c.Nodes) > n {
		last := c.Nodes[len(c.Nodes)-1]
		c.Nodes = c.Nodes[:len(c.Nodes)-1]
		if !slices.Contains(c.Leaving, last) {
			c.Leaving = append(c.Leaving, last)
		}
	}
	for i := len(c.Nodes); i < n; i++ {
		c.Nodes = append(c.Nodes, Node{
			Name: fmt.Sprintf("node-%d", i),
			IP:   fmt.Sprintf("10.89.%d.%d", c.Subnet, 10+i),
			Zone: fmt.Sprintf("zone-%c", 'a'+i%3),
		})
	}
}

// choose picks what the machine's other clusters do not use.
func choose(home string, port, apiservers int) (*Cluster, error) {
	h := fnv.New32a()
	h.Write([]byte(home))
	id, err := chooseID(home)
	if err != nil {
		return nil, err
	}
	c := &Cluster{
		Home:        home,
		ID:          id,
		ClusterCIDR: "10.244.0.0/16",
		ServiceCIDR: "10.96.0.0/16",
		ClusterDNS:  "10.96.0.10",
		Domain:      "cluster.local",
	}
	// A cluster that is down holds nothing, and wants its ports and its network back.
	others, err := registeredClusters(id)
	if err != nil {
		return nil, err
	}
	subnet, err := freeSubnet(int(h.Sum32()%250), others)
	if err != nil {
		return nil, err
	}
	c.Subnet = subnet
	usable := func(port int) error {
		for _, o := range others {
			if o.Joined == nil && (o.HTTPSPort == port || o.GRPCPort == port) {
				return fmt.Errorf("port %d belongs to the cluster in %s; choose another with --port", port, o.Home)
			}
		}
		if !free(port) {
			return fmt.Errorf("port %d is in use; choose another with --port", port)
		}
		return nil
	}
	if port != 0 {
		if err := cmp.Or(usable(port), usable(port+1)); err != nil {
			return nil, err
		}
		c.HTTPSPort, c.GRPCPort = port, port+1
		c.addMembers(apiservers)
		return c, nil
	}
	for p := 6443; p < 6443+500; p += 2 {
		if usable(p) == nil && usable(p+1) == nil {
			c.HTTPSPort, c.GRPCPort = p, p+1
			c.addMembers(apiservers)
			return c, nil
		}
	}
	return nil, errors.New("no free pair of ports from 6443 on; choose one with --port")
}

// chooseID makes an id from a home that no other home on this machine has.
func chooseID(home string) (string, error) {
	others, err := Registered()
	if err != nil {
		return "", err
	}
	for n := 0; ; n++ {
		h := fnv.New32a()
		h.Write([]byte(home))
		if n > 0 {
			fmt.Fprintf(h, "#%d", n)
		}
		id := fmt.Sprintf("%06x", h.Sum32()&0xffffff)
		if !slices.ContainsFunc(others, func(e Entry) bool { return e.ID == id && e.Home != home }) {
			return id, nil
		}
	}
}

// addMembers gives each of several apiservers an address.
func (c *Cluster) addMembers(n int) {
	for i := 0; n > 1 && i < n; i++ {
		c.Members = append(c.Members, Member{Name: fmt.Sprintf("apiserver-%d", i), IP: fmt.Sprintf("10.89.%d.%d", c.Subnet, 1+i)})
	}
	c.Founders, c.Named = slices.Clone(c.Members), len(c.Members)
}

// maxMembers is how many addresses there are for them: nodes have those from 10 on.
const maxMembers = 9

// AddMember gives another apiserver a name and an address. The first one of a
// control plane that had only one becomes a member too. A client is no member, and
// uses the stores of those who are.
func (c *Cluster) AddMember(client bool) (Member, error) {
	if len(c.Members) == 0 {
		c.Members = []Member{{Name: "apiserver-0", IP: c.Gateway()}}
		c.Founders, c.Named = slices.Clone(c.Members), 1
	}
	m := Member{Name: fmt.Sprintf("apiserver-%d", c.Named), Join: c.GRPC(), Client: client}
	for i := 1; i <= maxMembers && m.IP == ""; i++ {
		ip := fmt.Sprintf("10.89.%d.%d", c.Subnet, i)
		if !slices.ContainsFunc(c.Members, func(m Member) bool { return m.IP == ip }) {
			m.IP = ip
		}
	}
	if m.IP == "" {
		return m, fmt.Errorf("there are %d apiservers, and no address for more", len(c.Members))
	}
	c.Members = append(c.Members, m)
	c.Named++
	return m, nil
}

// Voters are the members that carry the state; clients are none.
func (c *Cluster) Voters() []Member {
	return slices.DeleteFunc(slices.Clone(c.Members), func(m Member) bool { return m.Client })
}

// Refound makes founders of all voters, for stores that begin anew: each is told by its
// flags where the others are.
func (c *Cluster) Refound() {
	for i := range c.Members {
		if !c.Members[i].Client {
			c.Members[i].Join, c.Members[i].Leaving = "", false
		}
	}
	c.Founders, c.Recovering = c.Voters(), ""
}

// SetLeaving notes, in the cluster's file, too, whether a member is leaving.
func (c *Cluster) SetLeaving(name string, leaving bool) error {
	for i := range c.Members {
		if c.Members[i].Name == name {
			c.Members[i].Leaving = leaving
		}
	}
	return c.Save()
}

// RemoveMember forgets an apiserver.
func (c *Cluster) RemoveMember(name string) {
	c.Members = slices.DeleteFunc(c.Members, func(m Member) bool { return m.Name == name })
}

// Member is the apiserver of that name, if there is one.
func (c *Cluster) Member(name string) (Member, bool) {
	i := slices.IndexFunc(c.Members, func(m Member) bool { return m.Name == name })
	if i < 0 {
		return Member{}, false
	}
	return c.Members[i], true
}

func free(port int) bool {
	l, err := net.Listen("tcp", fmt.Sprintf(":%d", port))
	if err != nil {
		return false
	}
	l.Close()
	return true
}

// freeSubnet finds an N whose 10.89.N.0/24 no link of this machine and none of the other
// clusters uses.
func freeSubnet(start int, others []*Cluster) (int, error) {
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		return 0, err
	}
	used := map[int]bool{}
	for _, o := range others {
		used[o.Subnet] = true
	}
	for _, a := range addrs {
		if n, ok := a.(*net.IPNet); ok {
			if ip := n.IP.To4(); ip != nil && ip[0] == 10 && (ip[1] == 89 || ip[1] == 90) {
				used[int(ip[2])] = true
			}
		}
	}
	for i := range 250 {
		if n := (start+i)%250 + 1; !used[n] {
			return n, nil
		}
	}
	return 0, errors.New("no free network 10.89.N.0/24 on this machine: delete a cluster first")
}
