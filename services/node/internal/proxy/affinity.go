package proxy

import (
	"context"
	"encoding/json"
	"os/exec"
	"strings"

	"sigs.k8s.io/knftables"
)

// maxRemembered bounds the clients that are carried over to a new table.
const maxRemembered = 50_000

// readClients reads each endpoint's recent clients, by set, from the table that is about to
// be replaced. It is best effort: without it, a client may be moved to another endpoint
// once.
func readClients(ctx context.Context) map[string][]string {
	out, err := exec.CommandContext(ctx, "nft", "-j", "list", "sets", "table", "ip", TableName).Output()
	if err != nil {
		return nil // no table: this is the first start, or another program removed it
	}
	return parseClients(out)
}

func parseClients(listing []byte) map[string][]string {
	var parsed struct {
		Nftables []struct {
			Set *struct {
				Name string            `json:"name"`
				Elem []json.RawMessage `json:"elem"`
			} `json:"set"`
		} `json:"nftables"`
	}
	if json.Unmarshal(listing, &parsed) != nil {
		return nil
	}
	clients := map[string][]string{}
	count := 0
	for _, object := range parsed.Nftables {
		if object.Set == nil || !strings.HasPrefix(object.Set.Name, clientsPrefix) {
			continue
		}
		for _, raw := range object.Set.Elem {
			var e struct {
				Elem struct {
					Val string `json:"val"`
				} `json:"elem"`
			}
			if json.Unmarshal(raw, &e) != nil || e.Elem.Val == "" || count == maxRemembered {
				continue
			}
			clients[object.Set.Name] = append(clients[object.Set.Name], e.Elem.Val)
			count++
		}
	}
	return clients
}

// carryOver adds the clients to the sets of a new table. Their timeouts start again.
func carryOver(tx *knftables.Transaction, sets map[string]*knftables.Set, clients map[string][]string) {
	for _, name := range sorted(sets) {
		for _, c := range clients[name] {
			tx.Add(&knftables.Element{Set: name, Key: []string{c}})
		}
	}
}
