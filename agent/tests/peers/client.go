package main

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"tailscale.com/derp"
	"tailscale.com/derp/derpconst"
	"tailscale.com/derp/derphttp"
	"tailscale.com/net/netmon"
	"tailscale.com/tailcfg"
	"tailscale.com/types/key"
)

// runClient connects one client and then does what the lines of standard input say:
//
//	send nodekey:HEX HEX   a packet
//	ping                   and waits for the answer
//	prefer true|false      whether this is its home
//	close
func runClient(arguments []string) error {
	flags := newFlags("client")
	regionFile := flags.String("region", "", "file with a DERPRegion")
	url := flags.String("url", "", "URL of a relay, in place of a region; for relays without TLS")
	private := flags.String("key", "", "private key; made up when empty")
	tls12 := flags.Bool("tls12", false, "TLS 1.2 at most, which rules fast start out")
	flags.Parse(arguments)

	self := key.NewNode()
	if *private != "" {
		if err := self.UnmarshalText([]byte(*private)); err != nil {
			return err
		}
	}
	var client *derphttp.Client
	if *url != "" {
		var err error
		if client, err = derphttp.NewClient(self, *url, logf, netmon.NewStatic()); err != nil {
			return err
		}
	} else {
		region, err := readRegion(*regionFile)
		if err != nil {
			return err
		}
		get := func() *tailcfg.DERPRegion { return region }
		client = derphttp.NewRegionClient(self, logf, netmon.NewStatic(), get)
	}
	if *tls12 {
		client.TLSConfig = &tls.Config{MaxVersion: tls.VersionTLS12}
	}
	client.SetCanAckPings(true)

	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	err := client.Connect(ctx)
	cancel()
	if err != nil {
		observe("refused", "error", err.Error())
		return nil
	}
	version, fast := "", false
	if state, ok := client.TLSConnectionState(); ok {
		version = tls.VersionName(state.Version)
		fast = state.Version >= tls.VersionTLS13 && announcesKey(state)
	}
	observe("connected", "self", self.Public(), "server", client.ServerPublicKey(), "tls", version, "fast", fast)

	ended := make(chan struct{})
	go func() {
		defer close(ended)
		receive(client)
	}()
	go func() {
		lines := bufio.NewScanner(os.Stdin)
		lines.Buffer(nil, 1<<20)
		for lines.Scan() {
			if err := obey(client, strings.Fields(lines.Text())); err != nil {
				observe("error", "error", err.Error())
			}
		}
		client.Close()
	}()
	<-ended
	return nil
}

// announcesKey is the condition under which the client starts fast.
func announcesKey(state *tls.ConnectionState) bool {
	for _, certificate := range state.PeerCertificates {
		if strings.HasPrefix(certificate.Subject.CommonName, derpconst.MetaCertCommonNamePrefix) {
			return true
		}
	}
	return false
}

func obey(client *derphttp.Client, words []string) error {
	if len(words) == 0 {
		return nil
	}
	switch {
	case words[0] == "send" && len(words) == 3:
		var to key.NodePublic
		if err := to.UnmarshalText([]byte(words[1])); err != nil {
			return err
		}
		packet, err := hex.DecodeString(words[2])
		if err != nil {
			return err
		}
		return client.Send(to, packet)
	case words[0] == "ping":
		ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
		defer cancel()
		if err := client.Ping(ctx); err != nil {
			return err
		}
		observe("pong")
		return nil
	case words[0] == "prefer" && len(words) == 2:
		client.NotePreferred(words[1] == "true")
		return nil
	case words[0] == "close":
		return client.Close()
	}
	return fmt.Errorf("not understood: %q", words)
}

// receive prints what comes until the connection ends. The client would connect again; that is not wanted here.
func receive(client *derphttp.Client) {
	for {
		message, err := client.Recv()
		if err != nil {
			observe("ended", "closed", errors.Is(err, derphttp.ErrClientClosed), "error", err.Error())
			return
		}
		switch message := message.(type) {
		case derp.ReceivedPacket:
			observe("received", "from", message.Source, "packet", hex.EncodeToString(message.Data))
		case derp.PeerGoneMessage:
			observe("peer-gone", "peer", message.Peer, "reason", message.Reason)
		case derp.ServerInfoMessage:
			observe("server-info", "rate", message.TokenBucketBytesPerSecond)
		case derp.HealthMessage:
			observe("health", "problem", message.Problem)
		case derp.ServerRestartingMessage:
			observe("restarting", "in_ms", message.ReconnectIn.Milliseconds(), "for_ms", message.TryFor.Milliseconds())
		case derp.KeepAliveMessage:
			observe("keepalive")
		default:
			observe("other", "type", fmt.Sprintf("%T", message))
		}
	}
}
