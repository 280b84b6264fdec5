package raft

import (
	"time"

	hraft "github.com/hashicorp/raft"

	raftv1 "keelson.dev/proto/keelson/raft/v1"
)

// Conversions of the library's messages to and from the wire.

func toEntry(l *hraft.Log) *raftv1.Entry {
	e := &raftv1.Entry{Index: l.Index, Term: l.Term, Type: uint32(l.Type), Data: l.Data, Extensions: l.Extensions}
	if !l.AppendedAt.IsZero() {
		e.AppendedUnixNano = l.AppendedAt.UnixNano()
	}
	return e
}

func fromEntry(e *raftv1.Entry, l *hraft.Log) {
	*l = hraft.Log{Index: e.Index, Term: e.Term, Type: hraft.LogType(e.Type), Data: e.Data, Extensions: e.Extensions}
	if e.AppendedUnixNano != 0 {
		l.AppendedAt = time.Unix(0, e.AppendedUnixNano)
	}
}

func toHeader(target hraft.ServerID, h hraft.RPCHeader) *raftv1.Header {
	return &raftv1.Header{Target: string(target), ProtocolVersion: int32(h.ProtocolVersion), Id: h.ID, Address: h.Addr}
}

func fromHeader(h *raftv1.Header) hraft.RPCHeader {
	return hraft.RPCHeader{ProtocolVersion: hraft.ProtocolVersion(h.GetProtocolVersion()), ID: h.GetId(), Addr: h.GetAddress()}
}

func toAppend(target hraft.ServerID, r *hraft.AppendEntriesRequest) *raftv1.AppendEntriesRequest {
	out := &raftv1.AppendEntriesRequest{
		Header: toHeader(target, r.RPCHeader), Term: r.Term, PrevLogEntry: r.PrevLogEntry, PrevLogTerm: r.PrevLogTerm,
		LeaderCommitIndex: r.LeaderCommitIndex,
	}
	if len(r.Entries) > 0 {
		out.Entries = make([]*raftv1.Entry, len(r.Entries))
		for i, l := range r.Entries {
			out.Entries[i] = toEntry(l)
		}
	}
	return out
}

func fromAppend(r *raftv1.AppendEntriesRequest) *hraft.AppendEntriesRequest {
	out := &hraft.AppendEntriesRequest{
		RPCHeader: fromHeader(r.Header), Term: r.Term, Leader: r.Header.GetAddress(),
		PrevLogEntry: r.PrevLogEntry, PrevLogTerm: r.PrevLogTerm, LeaderCommitIndex: r.LeaderCommitIndex,
	}
	if len(r.Entries) > 0 {
		out.Entries = make([]*hraft.Log, len(r.Entries))
		for i, e := range r.Entries {
			out.Entries[i] = &hraft.Log{}
			fromEntry(e, out.Entries[i])
		}
	}
	return out
}

func toAppended(r *hraft.AppendEntriesResponse) *raftv1.AppendEntriesResponse {
	return &raftv1.AppendEntriesResponse{Term: r.Term, LastLog: r.LastLog, Success: r.Success, NoRetryBackoff: r.NoRetryBackoff}
}

func fromAppended(from *raftv1.AppendEntriesResponse, to *hraft.AppendEntriesResponse) {
	to.RPCHeader.ProtocolVersion = hraft.ProtocolVersionMax
	to.Term, to.LastLog, to.Success, to.NoRetryBackoff = from.GetTerm(), from.GetLastLog(), from.GetSuccess(), from.GetNoRetryBackoff()
}

// heartbeat reports whether r is a heartbeat, which need not wait for the disk.
func heartbeat(r *hraft.AppendEntriesRequest) bool {
	return r.Term != 0 && len(r.Addr) > 0 && r.PrevLogEntry == 0 && r.PrevLogTerm == 0 && len(r.Entries) == 0 && r.LeaderCommitIndex == 0
}
