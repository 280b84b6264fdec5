package main

import (
	"context"
	"log/slog"
	"path/filepath"

	"keelson.dev/services/apiserver/internal/store/etcd"
	"keelson.dev/services/apiserver/internal/store/raft"
	"keelson.dev/services/internal/boot"
	"keelson.dev/services/internal/identity"
)

// recoverStores makes stores of one member from this one's disk. Interrupted, it is
// repeated: etcd, without which nothing starts, comes last.
func recoverStores(ctx context.Context, cfg *config, id *identity.Source) error {
	if !etcd.HasData(etcdDir(cfg)) {
		return boot.Invalid("--recover: there is no data of a member in --data-dir %s", cfg.dataDir)
	}
	transient, err := raft.Recover(raft.Config{Name: cfg.name, Dir: filepath.Join(cfg.dataDir, "raft")})
	if err != nil {
		return err
	}
	config := etcd.EmbeddedConfig{Name: cfg.name, Dir: etcdDir(cfg)}
	if len(cfg.EtcdPeers) > 0 {
		peer, err := cfg.peerTLS(ctx, id)
		if err != nil {
			return err
		}
		config.Peers = &etcd.PeerConfig{Members: cfg.EtcdPeers, Identity: peer}
	}
	lasting, err := etcd.Recover(ctx, config)
	if err != nil {
		return err
	}
	slog.InfoContext(ctx, "recovered", "member", cfg.name, "revision", int64(lasting), "transient", int64(transient))
	return nil
}
