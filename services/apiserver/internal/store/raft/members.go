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
	// lookEvery is how often members that are missing are looked for.
	lookEvery = 300 * time.Millisecond
	// identifyTime bounds the question who somebody is.
	identifyTime = time.Second
	// changeTime bounds how long a change of the membership may queue.
	changeTime = 2 * time.Second
	// nearlyAll is how many entries a new member may lack when it becomes a voter.
	nearlyAll = 64
)

// identify asks a member who it is.
func (s *Store) identify(name string) (*raftv1.IdentifyResponse, error) {
	p, err := s.transport.member(name)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(s.ctx, identifyTime)
	defer cancel()
	r, err := p.Identify(ctx, &raftv1.IdentifyRequest{})
	if err == nil && nameOf(hraft.ServerID(r.Id)) != name {
		return nil, fmt.Errorf("at the address of %s answers %q", name, r.Id)
	}
	return r, err
}

// bootstrap makes the cluster, once, from the first of the members, and only when
// it has heard from all of them that their disks are empty too. Any other member
// waits to be taken in. It tells whether this member made it.
func (s *Store) bootstrap() bool {
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for len(s.servers()) == 0 {
		if servers, ok := s.founders(); ok {
			err := s.raft.BootstrapCluster(hraft.Configuration{Servers: servers}).Error()
			if err == nil {
				s.log.Info("raft store founded", "members", len(servers))
				return true
			}
			s.log.Warn("raft store cannot be founded", "error", err)
		}
		select {
		case <-tick.C:
		case <-s.ctx.Done():
			return false
		}
	}
	return false
}

// founders are all members, if it is this one's turn to found the cluster.
func (s *Store) founders() (out []hraft.Server, ok bool) {
	if s.cfg.Members[0] != s.cfg.Name || s.cfg.Join {
		return nil, false
	}
	for _, name := range s.cfg.Members {
		id := s.id
		if name != s.cfg.Name {
			r, err := s.identify(name)
			if err != nil || len(r.Members) > 0 {
				s.log.Debug("raft store is not founded yet", "member", name, "knows", r.GetMembers(), "error", err)
				return nil, false
			}
			id = hraft.ServerID(r.Id)
		}
		out = append(out, hraft.Server{Suffrage: hraft.Voter, ID: id, Address: hraft.ServerAddress(id)})
	}
	return out, true
}

// takeIn lets the leader take in members that are new, and those whose disk was
// emptied: under their new id, and only once they have caught up with the log, in
// place of the old one.
func (s *Store) takeIn() {
	said := map[string]string{} // why a member could not be taken in, once
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
				s.log.Info("raft store: member is missing", "member", name, "error", why)
			}
			said[name] = why
		}
	}
}

// wanted are the names of those who shall be members.
func (s *Store) wanted() []string {
	if s.cfg.Follow == nil {
		return s.cfg.Members
	}
	return s.cfg.Follow.Names()
}

// letGo lets the leader let members go that shall be none any more. It hands over
// before it goes itself.
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
			s.log.Debug("raft store does not know yet whether a member is gone", "id", string(server.ID), "error", err)
			return
		}
		if server.ID == s.id {
			err = s.raft.LeadershipTransfer().Error()
		} else {
			s.log.Info("raft store lets a member go", "id", string(server.ID))
			err = s.raft.RemoveServer(server.ID, index, changeTime).Error()
		}
		if err != nil {
			s.log.Warn("raft store cannot let a member go yet", "id", string(server.ID), "error", err)
		}
		return // one change at a time
	}
}

// Leads tells whether this member leads, as far as it knows.
func (s *Store) Leads() bool { return s.raft.State() == hraft.Leader }

// takeInMember takes the next step for one member, if there is one to take.
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
			return nil // as it should be
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
		// Disks' ids are unique, so who knows this one's is of the same cluster. (It
		// may have been told of a membership that was not committed.)
		return fmt.Errorf("%s belongs to another cluster: its directory must be emptied", id)
	case !isKnown:
		s.log.Info("raft store takes a member in", "id", string(id))
		return s.raft.AddNonvoter(id, hraft.ServerAddress(id), index, changeTime).Error()
	case r.LastIndex+nearlyAll < s.raft.LastIndex():
		return nil // it still lacks much
	}
	for old := range known {
		if old != id { // its disk is gone
			s.log.Info("raft store lets a member's old disk go", "id", string(old))
			return s.raft.RemoveServer(old, index, changeTime).Error()
		}
	}
	s.log.Info("raft store gives a member its vote", "id", string(id))
	return s.raft.AddVoter(id, hraft.ServerAddress(id), index, changeTime).Error()
}
