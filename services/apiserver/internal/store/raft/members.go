package raft

import (
	"context"
	"fmt"
	"slices"
	"time"

	hraft "github.com/hashicorp/raft"

	raftv1 "keelson.dev/proto/keelson/raft/v1"
)

const (
	// lookEvery is the interval at which missing members are looked for.
	lookEvery = 300 * time.Millisecond
	// identifyTime bounds one Identify request.
	identifyTime = time.Second
	// changeTime bounds how long a change of the membership may be queued.
	changeTime = 2 * time.Second
	// nearlyAll is how many log entries a new member may lack when it becomes a voter.
	nearlyAll = 64
)

// identify asks a member for its id and the membership that it knows.
func (s *Store) identify(name string) (*raftv1.IdentifyResponse, error) {
	p, err := s.transport.member(name)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(s.ctx, identifyTime)
	defer cancel()
	r, err := p.Identify(ctx, &raftv1.IdentifyRequest{})
	if err == nil && nameOf(hraft.ServerID(r.Id)) != name {
		return nil, fmt.Errorf("another member answers at the address of %s: %q", name, r.Id)
	}
	return r, err
}

// bootstrap founds the cluster, once, on the first of the members, after all others have
// answered that their disks are empty too. On any other member it waits until a leader adds it.
// It reports whether this member founded the cluster.
func (s *Store) bootstrap() bool {
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for len(s.servers()) == 0 {
		if servers, ok := s.founders(); ok {
			err := s.raft.BootstrapCluster(hraft.Configuration{Servers: servers}).Error()
			if err == nil {
				s.log.InfoContext(s.ctx, "founded the raft store", "members", len(servers))
				return true
			}
			s.log.WarnContext(s.ctx, "cannot found the raft store", "error", err)
		}
		select {
		case <-tick.C:
		case <-s.ctx.Done():
			return false
		}
	}
	return false
}

// founders returns all members, if it is this member's turn to found the cluster.
func (s *Store) founders() (out []hraft.Server, ok bool) {
	if s.cfg.Members[0] != s.cfg.Name || s.cfg.Join {
		return nil, false
	}
	for _, name := range s.cfg.Members {
		id := s.id
		if name != s.cfg.Name {
			r, err := s.identify(name)
			if err != nil || len(r.Members) > 0 {
				s.log.DebugContext(s.ctx, "the raft store is not founded yet", "member", name, "knows", r.GetMembers(), "error", err)
				return nil, false
			}
			id = hraft.ServerID(r.Id)
		}
		out = append(out, hraft.Server{Suffrage: hraft.Voter, ID: id, Address: hraft.ServerAddress(id)})
	}
	return out, true
}

// takeIn runs on every member. While it leads, it removes members that are not wanted any more,
// and adds new members and those whose disk was emptied. The latter get a new id, which
// replaces the old one once it has caught up with the log.
func (s *Store) takeIn() {
	said := map[string]string{} // why a member could not be added; logged once
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-s.ctx.Done():
			return
		}
		if s.raft.State() != hraft.Leader {
			continue
		}
		s.letGo()
		for _, name := range s.wanted() {
			if name == s.cfg.Name {
				continue
			}
			why := ""
			if err := s.takeInMember(name); err != nil {
				why = err.Error()
			}
			if why != said[name] && why != "" {
				s.log.InfoContext(s.ctx, "a member of the raft store is missing", "member", name, "error", why)
			}
			said[name] = why
		}
	}
}

// wanted returns the names that should be members.
func (s *Store) wanted() []string {
	if s.cfg.Follow == nil {
		return s.cfg.Members
	}
	return s.cfg.Follow.Names()
}

// letGo removes one member that is not wanted any more. To remove itself, the leader hands over
// first.
func (s *Store) letGo() {
	if s.cfg.Follow == nil {
		return
	}
	configuration := s.raft.GetConfiguration()
	index, servers := configuration.Index(), configuration.Configuration().Servers
	wanted := s.cfg.Follow.Names()
	for _, server := range servers {
		name := nameOf(server.ID)
		if slices.Contains(wanted, name) {
			continue
		}
		ctx, cancel := context.WithTimeout(s.ctx, changeTime)
		gone, err := s.cfg.Follow.Gone(ctx, name)
		cancel()
		if err != nil || !gone {
			s.log.DebugContext(s.ctx, "the raft store cannot tell yet whether a member was removed", "id", string(server.ID), "error", err)
			return
		}
		if server.ID == s.id {
			err = s.raft.LeadershipTransfer().Error()
		} else {
			s.log.InfoContext(s.ctx, "removing a member from the raft store", "id", string(server.ID))
			err = s.raft.RemoveServer(server.ID, index, changeTime).Error()
		}
		if err != nil {
			s.log.WarnContext(s.ctx, "cannot remove a member from the raft store yet", "id", string(server.ID), "error", err)
		}
		return // one change at a time
	}
}

// Leads reports whether this member leads, as far as it knows.
func (s *Store) Leads() bool { return s.raft.State() == hraft.Leader }

// takeInMember makes the next change of the membership that one member needs, if any.
func (s *Store) takeInMember(name string) error {
	p, err := s.transport.member(name)
	if err != nil {
		return err
	}
	configuration := s.raft.GetConfiguration()
	index := configuration.Index()
	known := map[hraft.ServerID]hraft.ServerSuffrage{}
	for _, server := range configuration.Configuration().Servers {
		if nameOf(server.ID) != name {
			continue
		}
		if known[server.ID] = server.Suffrage; server.Suffrage == hraft.Voter && p.since(server.ID) < 2*s.cfg.Timing.Election {
			return nil // nothing to do
		}
	}
	r, err := s.identify(name)
	if err != nil {
		return err
	}
	id := hraft.ServerID(r.Id)
	suffrage, isKnown := known[id]
	switch {
	case isKnown && suffrage == hraft.Voter:
		return nil
	case !isKnown && len(r.Members) > 0 && !slices.Contains(r.Members, string(s.id)):
		// Ids of disks are unique: a member that knows this one's belongs to the same cluster.
		// (It may know a membership that was not committed.)
		return fmt.Errorf("%s belongs to another cluster: empty its directory", id)
	case !isKnown:
		s.log.InfoContext(s.ctx, "adding a member to the raft store", "id", string(id))
		return s.raft.AddNonvoter(id, hraft.ServerAddress(id), index, changeTime).Error()
	case r.LastIndex+nearlyAll < s.raft.LastIndex():
		return nil // it has not caught up yet
	}
	for old := range known {
		if old != id { // its disk was lost
			s.log.InfoContext(s.ctx, "removing a member's old disk from the raft store", "id", string(old))
			return s.raft.RemoveServer(old, index, changeTime).Error()
		}
	}
	s.log.InfoContext(s.ctx, "giving a member of the raft store its vote", "id", string(id))
	return s.raft.AddVoter(id, hraft.ServerAddress(id), index, changeTime).Error()
}
