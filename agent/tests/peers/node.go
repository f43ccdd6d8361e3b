package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"time"

	"golang.org/x/net/dns/dnsmessage"
	"tailscale.com/client/local"
	"tailscale.com/envknob"
	"tailscale.com/ipn"
	"tailscale.com/tailcfg"
	"tailscale.com/tsnet"
)

// order is one line of standard input. Its answer is one line {"event":"done","id":…,…} or
// {"event":"failed","id":…,"error":…}; orders are carried out side by side.
type order struct {
	ID int `json:"id"`
	// One of the words in obey.
	Do string `json:"do"`
	// An address of the tailnet, for ping.
	Peer string `json:"peer"`
	// disco, TSMP, ICMP or peerapi, for ping.
	Kind string `json:"kind"`
	// HOST:PORT for dial and whois, :PORT for listen. HOST may be a MagicDNS name.
	Address string `json:"address"`
	// What dial sends and wants back; with Bytes in its place, that many of them.
	Text  string `json:"text"`
	Bytes int64  `json:"bytes"`
	// For lookup: a name, and A or AAAA.
	Name string `json:"name"`
	Type string `json:"type"`
	// For login.
	Key string `json:"key"`
	// For prefs.
	WantRunning *bool  `json:"want_running"`
	Hostname    string `json:"hostname"`
	// How long it may take; 30 when absent.
	Seconds float64 `json:"seconds"`
}

// runNode is one node with Tailscale's real engine, in user space. Beside answers it prints what its bus says:
//
//	{"event":"state","state":"NeedsLogin"}
//	{"event":"sign-in","url":…}
//	{"event":"error","error":…}
//	{"event":"health","problems":[…]}
func runNode(arguments []string) error {
	flags := newFlags("node")
	control := flags.String("control", "", "URL of the coordination server")
	authKey := flags.String("key", "", "auth key; signs in by URL when empty")
	hostname := flags.String("hostname", "", "name to ask for")
	directory := flags.String("state-dir", "", "where it keeps its keys")
	ephemeral := flags.Bool("ephemeral", false, "is removed when it goes")
	port := flags.Int("port", 0, "UDP port")
	flags.Parse(arguments)
	if *control == "" || *directory == "" {
		return errors.New("needs -control and -state-dir")
	}

	envknob.SetNoLogsNoSupport()
	server := &tsnet.Server{
		Dir:        *directory,
		Hostname:   *hostname,
		ControlURL: *control,
		AuthKey:    *authKey,
		Ephemeral:  *ephemeral,
		Port:       uint16(*port),
		Logf:       logf,
	}
	if err := server.Start(); err != nil {
		return err
	}
	client, err := server.LocalClient()
	if err != nil {
		return err
	}
	go watch(client)

	node := &node{server: server, client: client}
	lines := bufio.NewScanner(os.Stdin)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		var order order
		if err := json.Unmarshal(lines.Bytes(), &order); err != nil {
			observe("error", "error", err.Error())
			continue
		}
		if order.Do == "quit" {
			break
		}
		go node.answer(order)
	}
	return server.Close()
}

type node struct {
	server *tsnet.Server
	client *local.Client
}

// watch prints what the bus says until the node ends.
func watch(client *local.Client) {
	watcher, err := client.WatchIPNBus(context.Background(), ipn.NotifyInitialState|ipn.NotifyInitialHealthState)
	if err != nil {
		observe("error", "error", err.Error())
		return
	}
	defer watcher.Close()
	for {
		notice, err := watcher.Next()
		if err != nil {
			return
		}
		if notice.State != nil {
			observe("state", "state", notice.State.String())
		}
		if notice.BrowseToURL != nil && *notice.BrowseToURL != "" {
			observe("sign-in", "url", *notice.BrowseToURL)
		}
		if notice.ErrMessage != nil {
			observe("error", "error", *notice.ErrMessage)
		}
		if notice.Health != nil {
			problems := []string{}
			for code := range notice.Health.Warnings {
				problems = append(problems, string(code))
			}
			observe("health", "problems", problems)
		}
	}
}

func (n *node) answer(order order) {
	seconds := order.Seconds
	if seconds == 0 {
		seconds = 30
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Duration(seconds*float64(time.Second)))
	defer cancel()
	began := time.Now()
	result, err := n.obey(ctx, order)
	if err != nil {
		observe("failed", "id", order.ID, "error", err.Error())
		return
	}
	observe("done", "id", order.ID, "ms", float64(time.Since(began).Microseconds())/1e3, "result", result)
}

func (n *node) obey(ctx context.Context, order order) (any, error) {
	switch order.Do {
	case "up": // Waits until it is running.
		return n.server.Up(ctx)
	case "status":
		return n.client.Status(ctx)
	case "ping":
		peer, err := netip.ParseAddr(order.Peer)
		if err != nil {
			return nil, err
		}
		return n.client.Ping(ctx, peer, tailcfg.PingType(order.Kind))
	case "dial":
		return exchange(ctx, n.server.Dial, order)
	case "listen": // Sends back what comes.
		listener, err := n.server.Listen("tcp", order.Address)
		if err != nil {
			return nil, err
		}
		go echo(listener)
		return listener.Addr().String(), nil
	case "whois":
		return n.client.WhoIs(ctx, order.Address)
	case "lookup":
		return n.lookup(ctx, order)
	case "filter": // The rules that the packet filter has in force.
		return n.client.DebugPacketFilterRules(ctx)
	case "derp-map":
		return n.client.CurrentDERPMap(ctx)
	case "prefs":
		return n.prefs(ctx, order)
	case "login":
		// A node that has signed out has forgotten what it was started with.
		prefs := ipn.NewPrefs()
		prefs.ControlURL, prefs.Hostname, prefs.WantRunning = n.server.ControlURL, n.server.Hostname, true
		if err := n.client.Start(ctx, ipn.Options{AuthKey: order.Key, UpdatePrefs: prefs}); err != nil {
			return nil, err
		}
		return nil, n.client.StartLoginInteractive(ctx)
	case "logout":
		return nil, n.client.Logout(ctx)
	}
	return nil, fmt.Errorf("not understood: %q", order.Do)
}

// exchange connects, sends, and reads as much back, which must be the same.
func exchange(ctx context.Context, dial func(context.Context, string, string) (net.Conn, error), order order) (any, error) {
	connection, err := dial(ctx, "tcp", order.Address)
	if err != nil {
		return nil, err
	}
	defer connection.Close()
	if deadline, ok := ctx.Deadline(); ok {
		connection.SetDeadline(deadline)
	}
	text := []byte(order.Text)
	if order.Bytes > 0 {
		text = bytes.Repeat([]byte("mesh"), int(order.Bytes/4))
	}
	sent := make(chan error, 1)
	go func() {
		_, err := connection.Write(text)
		sent <- err
	}()
	back := make([]byte, len(text))
	if _, err := io.ReadFull(connection, back); err != nil {
		return nil, err
	}
	if err := <-sent; err != nil {
		return nil, err
	}
	if !bytes.Equal(text, back) {
		return nil, errors.New("what came back is not what was sent")
	}
	return map[string]any{"bytes": len(back), "local": connection.LocalAddr().String()}, nil
}

func echo(listener net.Listener) {
	for {
		connection, err := listener.Accept()
		if err != nil {
			return
		}
		go func() {
			defer connection.Close()
			io.Copy(connection, connection)
		}()
	}
}

// lookup asks the node's own resolver, as applications are made to by MagicDNS.
func (n *node) lookup(ctx context.Context, order order) (any, error) {
	message, _, err := n.client.QueryDNS(ctx, order.Name, order.Type)
	if err != nil {
		return nil, err
	}
	var answer dnsmessage.Message
	if err := answer.Unpack(message); err != nil {
		return nil, err
	}
	addresses := []string{}
	for _, record := range answer.Answers {
		switch body := record.Body.(type) {
		case *dnsmessage.AResource:
			addresses = append(addresses, netip.AddrFrom4(body.A).String())
		case *dnsmessage.AAAAResource:
			addresses = append(addresses, netip.AddrFrom16(body.AAAA).String())
		}
	}
	return map[string]any{"code": answer.RCode.String(), "addresses": addresses}, nil
}

func (n *node) prefs(ctx context.Context, order order) (any, error) {
	change := new(ipn.MaskedPrefs)
	if order.WantRunning != nil {
		change.WantRunningSet, change.WantRunning = true, *order.WantRunning
	}
	if order.Hostname != "" {
		change.HostnameSet, change.Hostname = true, order.Hostname
	}
	return n.client.EditPrefs(ctx, change)
}

// runEcho sends back what comes, over the host's own TCP.
func runEcho(arguments []string) error {
	flags := newFlags("echo")
	listen := flags.String("listen", ":7", "where")
	flags.Parse(arguments)
	listener, err := net.Listen("tcp", *listen)
	if err != nil {
		return err
	}
	observe("ready", "address", listener.Addr().String())
	echo(listener)
	return nil
}

// runDial sends something to an echo over the host's own TCP, and reads it back.
func runDial(arguments []string) error {
	flags := newFlags("dial")
	address := flags.String("address", "", "HOST:PORT")
	size := flags.Int64("bytes", 1000, "how many")
	patience := flags.Duration("patience", 3*time.Second, "how long it may take")
	flags.Parse(arguments)
	ctx, cancel := context.WithTimeout(context.Background(), *patience)
	defer cancel()
	dialer := new(net.Dialer)
	result, err := exchange(ctx, dialer.DialContext, order{Address: *address, Bytes: *size})
	if err != nil {
		return err
	}
	observe("done", "result", result)
	return nil
}
