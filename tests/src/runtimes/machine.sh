# The first process of a machine: covers what container runtimes write to, puts the plugin, its
# configuration and an image in place, and stays until its input ends.
# Arguments: scratch directory, directory of the daemon's socket, plugin, configuration, image name.
set -eu
scratch=$1 node=$2 plugin=$3 conflist=$4 image=$5

# The copies of the host's named namespaces would keep those alive after their removal.
umount --lazy --recursive /run/netns 2>/dev/null || true

mount -t tmpfs machine "$scratch"
cd "$scratch"
mkdir etc work node
mount -t overlay machine -o "lowerdir=/etc,upperdir=$scratch/etc,workdir=$scratch/work" /etc
mount --bind "$node" node
for dir in /run /opt /var/lib /var/tmp /dev/shm; do
    mount -t tmpfs machine "$dir"
done
mkdir -p "$node"
mount --move node "$node"

rm -rf /etc/cni
mkdir -p /etc/cni/net.d /opt/cni/bin /run/lock
printf '%s' "$conflist" > /etc/cni/net.d/10-viaduct.conflist
cp "$plugin" /opt/cni/bin/viaduct-cni
ln /opt/cni/bin/viaduct-cni /opt/cni/bin/loopback
# Where Debian's runtimes look as well: nobody else's plugins are to be found.
if [ -d /usr/lib/cni ]; then
    mount --bind /opt/cni/bin /usr/lib/cni
fi

# An image in the format of `docker save`, which every runtime reads.
mkdir -p root/bin root/dev root/etc root/proc root/sys root/tmp
cp "$(command -v busybox)" root/bin/busybox
for applet in head ip mkfifo nc netstat ping rm sha256sum sh sleep tee; do
    ln -s busybox "root/bin/$applet"
done
chroot root /bin/sh -c : || { echo "busybox needs libraries: install busybox-static" >&2; exit 1; }
tar -C root -cf layer.tar .
digest=$(sha256sum layer.tar | cut -d' ' -f1)
cat > config.json <<CONFIG
{"architecture": "$(dpkg --print-architecture)", "os": "linux",
 "config": {"Env": ["PATH=/bin"], "Cmd": ["sleep", "1000000"]},
 "rootfs": {"type": "layers", "diff_ids": ["sha256:$digest"]}}
CONFIG
printf '[{"Config":"config.json","RepoTags":["%s"],"Layers":["layer.tar"]}]' "$image" > manifest.json
tar -cf /var/lib/image.tar manifest.json config.json layer.tar

echo ready
# Not `exec`: the shell is the parent of every orphan of the machine and has to bury them.
cat > /dev/null
