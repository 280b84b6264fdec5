// Package cluster describes one local cluster: what was chosen for it (ports, ranges, names)
// and where its files are. It must not start or change anything: other packages do, according
// to this description.
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

// Cluster is the content of cluster.json: everything that must stay the same between starts.
type Cluster struct {
	// Home is the directory that contains the file. It is not stored.
	Home string `json:"-"`
	// ID distinguishes the clusters of one machine. It is part of the names of links and
	// namespaces.
	ID string `json:"id"`
	// Subnet is the N of 10.89.N.0/24, the network of the nodes, and of 10.90.N.0/24, the
	// addresses of load balancers.
	Subnet int `json:"subnet"`
	// HTTPSPort and GRPCPort are the ports of the first apiserver.
	HTTPSPort int `json:"httpsPort"`
	GRPCPort  int `json:"grpcPort"`
	// Members are all apiservers of a control plane that has, or once had, more than one.
	Members []Member `json:"members,omitempty"`
	// Founders are the apiservers with which it started. Their flags never change.
	Founders []Member `json:"founders,omitempty"`
	// Recovering is the member from whose disk a recovery was begun but not completed.
	Recovering string `json:"recovering,omitempty"`
	// Named is how many names have been given to members. No name is given twice.
	Named int `json:"named,omitempty"`
	// Nodes are the nodes with a container runtime. Simulated is the number of simulated nodes.
	Nodes     []Node `json:"nodes"`
	Simulated int    `json:"simulatedNodes,omitempty"`
	// Leaving are nodes whose removal has begun and may not be complete.
	Leaving []Node `json:"leavingNodes,omitempty"`
	// Egress gives nodes a route out of the machine.
	Egress bool `json:"egress,omitempty"`
	// OTLPEndpoint also receives the spans.
	OTLPEndpoint string `json:"otlpEndpoint,omitempty"`
	// NodeFlags are flags of the node service in addition to those that keel sets, without
	// dashes: "name=value".
	NodeFlags []string `json:"nodeFlags,omitempty"`
	// ClusterCIDR and ServiceCIDR are the ranges of pods and Services. ClusterDNS and Domain
	// are the address and domain of the cluster's DNS.
	ClusterCIDR string `json:"clusterCIDR"`
	ServiceCIDR string `json:"serviceCIDR"`
	ClusterDNS  string `json:"clusterDNS"`
	Domain      string `json:"domain"`
	// Joined is set if this home contains a node of another machine's cluster.
	Joined *Joined `json:"joined,omitempty"`
}

// Member is an apiserver of a control plane that has several.
type Member struct {
	Name string `json:"name"`
	// IP is its own address in the network of the nodes. All members use the same ports.
	IP string `json:"ip"`
	// Join is the comma-separated gRPC addresses of the apiservers that it asked to join, or
	// empty for a founder. It never changes, because it is a flag of a process that must not be
	// restarted when other members are added or removed.
	Join string `json:"join,omitempty"`
	// Client means that it is not a member, but uses the members' stores.
	Client bool `json:"client,omitempty"`
	// Leaving is set while it is being removed. Whether it is still a member must then be asked
	// of the others.
	Leaving bool `json:"leaving,omitempty"`
}

// Ports on which members serve each other, on their own addresses.
const (
	PeerPort = 7443
	EtcdPort = 2380
)

// Joined describes the cluster that a joined node belongs to.
type Joined struct {
	// GRPC is the comma-separated host:port of the apiservers.
	GRPC string `json:"grpc"`
	// NodeIP is this machine's address in that cluster.
	NodeIP string `json:"nodeIP"`
}

// Node is a node on this machine.
type Node struct {
	Name string `json:"name"`
	// IP is its address in the network of the nodes.
	IP string `json:"ip"`
	// Zone is its failure domain.
	Zone string `json:"zone"`
}

// Index returns N for a node of this cluster called node-N, or -1.
func (n Node) Index() int {
	i, err := strconv.Atoi(strings.TrimPrefix(n.Name, "node-"))
	if err != nil {
		return -1
	}
	return i
}

// Gateway returns the host's address in the network of the nodes.
func (c *Cluster) Gateway() string { return fmt.Sprintf("10.89.%d.1", c.Subnet) }

// NodeCIDR returns the host's address in the network of the nodes, with the prefix length.
func (c *Cluster) NodeCIDR() string { return fmt.Sprintf("10.89.%d.1/24", c.Subnet) }

// LoadBalancerCIDR returns the range of the addresses of load balancers.
func (c *Cluster) LoadBalancerCIDR() string { return fmt.Sprintf("10.90.%d.0/24", c.Subnet) }

// Bridge returns the name of the host's link to the network of the nodes.
func (c *Cluster) Bridge() string { return "ks" + c.ID }

// Namespace returns the name of a node's network namespace.
func (c *Cluster) Namespace(node string) string { return "keelson-" + c.ID + "-" + node }

// CgroupRoot returns the cgroup of a node's pods.
func (c *Cluster) CgroupRoot(node string) string { return "/keelson-" + c.ID + "/" + node }

// ProcessCgroup returns the cgroup of one of the cluster's own processes, and of what it starts
// outside of pods.
func (c *Cluster) ProcessCgroup(name string) string { return "/keelson-" + c.ID + "/keel/" + name }

// Path joins names to the home directory.
func (c *Cluster) Path(names ...string) string {
	return filepath.Join(append([]string{c.Home}, names...)...)
}

// Identity returns the directory of a service's certificate.
func (c *Cluster) Identity(name string) string { return c.Path("pki", name) }

// Kubeconfig returns the path of the administrator's kubeconfig.
func (c *Cluster) Kubeconfig() string { return c.Path("kubeconfig") }

// GRPC returns the comma-separated gRPC addresses of the apiservers, for services on this
// machine.
func (c *Cluster) GRPC() string { return c.grpcAt("127.0.0.1") }

// NodeGRPC returns the comma-separated gRPC addresses of the apiservers, for nodes.
func (c *Cluster) NodeGRPC() string { return c.grpcAt(c.Gateway()) }

// grpcAt returns the gRPC addresses of the apiservers. A single apiserver is reached at host.
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

// HTTPS returns the REST address for clients: that of the apiserver, or of the balancer if
// there are several.
func (c *Cluster) HTTPS() string { return fmt.Sprintf("127.0.0.1:%d", c.HTTPSPort) }

// ErrNone means that a directory contains no cluster.
var ErrNone = errors.New("there is no cluster here")

// Load reads the cluster of a home directory.
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
		return nil, fmt.Errorf("%s: %w; `keel up --home %s` creates one", home, ErrNone, home)
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

// Save writes cluster.json atomically.
func (c *Cluster) Save() error {
	data, err := json.MarshalIndent(c, "", "  ")
	if err != nil {
		return err
	}
	return WriteFile(c.Path(file), append(data, '\n'), 0o600)
}

// unfinished is the prefix of files that WriteFile has not moved into place yet.
const unfinished = ".new-"

// WriteFile replaces a file atomically, so that after a crash either the old or the new one
// exists.
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

// Options are the options of `keel up`.
type Options struct {
	Home      string
	Nodes     int
	Simulated int
	Port      int
	// APIServers is the number of apiservers. 0 keeps the existing number, or means 1 for a new
	// cluster.
	APIServers int
	Egress     bool
	// OTLPEndpoint replaces the stored endpoint unless it is nil. "" removes it.
	OTLPEndpoint *string
	// NodeFlags replace the stored flags of nodes unless they are nil. "" is no flag.
	NodeFlags []string
	// Free, if set, returns an error if something on this machine already uses a new cluster's
	// id.
	Free func(id string) error
}

// Open loads the cluster of a home directory, or chooses a new one. Options that differ from
// the stored ones are applied if a running cluster can follow (nodes, simulated nodes, egress,
// OTLP endpoint, flags of nodes). A different port or number of apiservers is an error.
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
		// Two clusters that are created at the same time would choose the same.
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
		return nil, fmt.Errorf("the cluster has %d apiservers in %s; use `keel member add` and `keel member remove` to change that", have, home)
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
	if o.NodeFlags != nil {
		c.NodeFlags = slices.DeleteFunc(slices.Clone(o.NodeFlags), func(f string) bool { return f == "" })
	}
	return c, c.Save()
}

// MaxNodes is how many nodes fit in the network of a cluster on one machine.
const MaxNodes = 200

// resize changes the number of nodes. Those that are removed are added to Leaving.
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

// choose chooses an id, a subnet and ports that no other cluster of the machine uses.
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
	// A cluster that is down does not hold its ports and its network, but needs them when it is
	// started again.
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
	return nil, errors.New("no two consecutive ports from 6443 on are free; choose them with --port")
}

// chooseID derives an id from a home that no other home on this machine has.
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

// addMembers gives an address to each of several apiservers.
func (c *Cluster) addMembers(n int) {
	for i := 0; n > 1 && i < n; i++ {
		c.Members = append(c.Members, Member{Name: fmt.Sprintf("apiserver-%d", i), IP: fmt.Sprintf("10.89.%d.%d", c.Subnet, 1+i)})
	}
	c.Founders, c.Named = slices.Clone(c.Members), len(c.Members)
}

// maxMembers is the number of addresses for apiservers: those of nodes start at 10.
const maxMembers = 9

// AddMember adds another apiserver with a name and an address. If the control plane had only
// one, that becomes a member too. A client is not a member, but uses the members' stores.
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
		return m, fmt.Errorf("there are %d apiservers already, and no addresses for more", len(c.Members))
	}
	c.Members = append(c.Members, m)
	c.Named++
	return m, nil
}

// Voters returns the members that carry the state, without clients.
func (c *Cluster) Voters() []Member {
	return slices.DeleteFunc(slices.Clone(c.Members), func(m Member) bool { return m.Client })
}

// Refound makes all voters founders, for stores that start over: each learns from its flags
// where the others are.
func (c *Cluster) Refound() {
	for i := range c.Members {
		if !c.Members[i].Client {
			c.Members[i].Join, c.Members[i].Leaving = "", false
		}
	}
	c.Founders, c.Recovering = c.Voters(), ""
}

// SetLeaving records whether a member is leaving, also in cluster.json.
func (c *Cluster) SetLeaving(name string, leaving bool) error {
	for i := range c.Members {
		if c.Members[i].Name == name {
			c.Members[i].Leaving = leaving
		}
	}
	return c.Save()
}

// RemoveMember removes an apiserver from the description.
func (c *Cluster) RemoveMember(name string) {
	c.Members = slices.DeleteFunc(c.Members, func(m Member) bool { return m.Name == name })
}

// Member returns the apiserver with a name, if there is one.
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

// freeSubnet returns an N such that 10.89.N.0/24 is used neither by a link of this machine nor
// by another cluster.
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
	return 0, errors.New("no network 10.89.N.0/24 is free on this machine: delete a cluster first")
}
